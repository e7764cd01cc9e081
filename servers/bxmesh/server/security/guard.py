"""The security of one server, put together: who is let in, what is told, what is kept to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from bxmesh.server.interceptors import AuthenticationInterceptor
from bxmesh.server.settings import Settings
from bxmesh.server.streams.ending import end_tasks

from . import mesh_key
from .addresses import address_of
from .admin_key import AdminKeyAuthenticator
from .api_keys import ApiKeyAuthenticator
from .authorization import authorize
from .directory import API_KEY, IDENTITY, ROLE, Directory
from .events import IGNORED
from .mesh import SecurityMesh
from .mirror import Mirror
from .policy_source import NO_POLICY
from .records import Records

__all__ = ["Guard", "guard"]

_KINDS = (IDENTITY, ROLE, API_KEY)


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands before the services of a server."""

    mesh: SecurityMesh
    authentication: AuthenticationInterceptor


@asynccontextmanager
async def guard(settings: Settings, redis: Redis, admin_key: str) -> AsyncIterator[Guard]:
    """Keeps a server's guard within a block. Raises what Redis and the mesh key's file raise."""
    key = await asyncio.to_thread(mesh_key.load_or_create, settings.mesh_key_path)
    async with Mirror(Records(redis, key), _KINDS) as mirror:
        directory = Directory(mirror)
        mesh = SecurityMesh(settings, redis, key, mirror, directory, IGNORED, NO_POLICY, _Unused())
        authentication = AuthenticationInterceptor(
            [AdminKeyAuthenticator(admin_key), ApiKeyAuthenticator(directory, mirror)],
            authorize,
            events=mesh.events,
            address_of=address_of,
        )
        mirror.on_change(authentication.look)
        watch = asyncio.create_task(authentication.watch())
        try:
            yield Guard(mesh, authentication)
        finally:
            await end_tasks(watch)


class _Unused:
    async def last_used(self, names: Sequence[str]) -> Mapping[str, float]:
        return {}
