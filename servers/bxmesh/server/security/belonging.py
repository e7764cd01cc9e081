"""Whose Redis it is: that of the mesh whose key has sealed what is in it."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from bxmesh.server.settings import Settings

from .audit import AuditLog
from .kinds import KINDS
from .mesh_key import load_or_create

__all__ = ["belong"]

_MESH = "bxmesh:{security}:mesh"


async def belong(redis: Redis, settings: Settings) -> None:
    """Marks a Redis as this mesh's; with `adopt_redis` it leaves what another key has sealed.

    Raises OSError for a Redis of a mesh with another key, and what Redis and the key's file raise.
    """
    path = settings.mesh_key_path
    own = (await asyncio.to_thread(load_or_create, path)).fingerprint
    await redis.set(_MESH, own, nx=True)
    found: Any = await redis.get(_MESH)
    other = found.decode(errors="replace")
    if other == own:
        return
    if not settings.adopt_redis:
        raise OSError(
            f"This Redis belongs to a mesh with another key than {path} holds. Copy that mesh's "
            "mesh.key there, or name it with BXMESH_MESH_KEY_FILE. If it is lost, --adopt-redis "
            "goes on without what it sealed: identities, keys, policies, and work that waits."
        )
    await redis.delete(*(f"bxmesh:{{security}}:{kind}" for kind in KINDS))
    await AuditLog.put_aside(redis, other)
    await redis.set(_MESH, own)
