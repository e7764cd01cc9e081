"""The security of one server, put together: who is let in, what is told, what is kept to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from bxmesh.security.v1.violation_pb2 import SEVERITY_CRITICAL, VIOLATION_KIND_FORGERY
from bxmesh.server.interceptors import AuthenticationInterceptor
from bxmesh.server.settings import Settings
from bxmesh.server.streams.ending import end_tasks

from . import mesh_key
from .addresses import address_of
from .admin_key import AdminKeyAuthenticator
from .api_keys import ApiKeyAuthenticator
from .audit import AuditLog
from .authorization import authorize
from .directory import API_KEY, IDENTITY, ROLE, Directory
from .events import ViolationEvent
from .mesh import SecurityMesh
from .mirror import Mirror
from .policy_source import NO_POLICY
from .recorder import Recorder
from .records import Records
from .usage import Usage
from .violations import Violations

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
    async with (
        Mirror(Records(redis, key), _KINDS) as mirror,
        AuditLog(
            redis, key, settings.state_dir / "audit-checkpoints.jsonl", settings.audit_days
        ) as log,
        Usage(redis) as usage,
    ):
        directory = Directory(mirror)
        violations = Violations(redis, key)
        async with Recorder(log, violations) as recorder:
            mirror.on_forged = partial(_tell_forged, recorder)
            mesh = SecurityMesh(
                settings=settings,
                redis=redis,
                key=key,
                mirror=mirror,
                directory=directory,
                events=recorder,
                policies=NO_POLICY,
                usage=usage,
                audit_log=log,
                violations=violations,
                count_blocked=_none_blocked,
                open_circuits=_none_open,
            )
            authentication = AuthenticationInterceptor(
                [AdminKeyAuthenticator(admin_key), ApiKeyAuthenticator(directory, mirror)],
                authorize,
                events=recorder,
                count=usage.called,
                address_of=address_of,
            )
            mirror.on_change(authentication.look)
            watch = asyncio.create_task(authentication.watch())
            try:
                yield Guard(mesh, authentication)
            finally:
                await end_tasks(watch)


def _tell_forged(recorder: Recorder, kind: str, name: str) -> None:
    recorder.violation(
        ViolationEvent(
            VIOLATION_KIND_FORGERY,
            SEVERITY_CRITICAL,
            rule="FORGED_RECORD",
            message="A security record in Redis has no seal of this mesh and is left out.",
            resource=f"{kind}/{name}",
        )
    )


async def _none_blocked() -> int:
    return 0


async def _none_open() -> Sequence[str]:
    return ()
