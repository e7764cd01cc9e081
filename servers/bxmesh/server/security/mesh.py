"""What the RPCs of the security service share."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from bxmesh.server.settings import Settings

from .events import SecurityEvents
from .mesh_key import MeshKey
from .mirror import Mirror

__all__ = ["SecurityMesh"]


@dataclass(frozen=True, slots=True)
class SecurityMesh:
    """The mechanisms of security in one server."""

    settings: Settings
    redis: Redis
    key: MeshKey
    mirror: Mirror
    events: SecurityEvents
