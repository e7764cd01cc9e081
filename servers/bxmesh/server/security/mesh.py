"""What the RPCs of the security service share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis

from bxmesh.server.settings import Settings

from .directory import Directory
from .events import SecurityEvents
from .mesh_key import MeshKey
from .mirror import Mirror
from .policy_source import PolicySource

__all__ = ["SecurityMesh"]


class LastUse(Protocol):
    """Knows when who called last."""

    async def last_used(self, names: Sequence[str]) -> Mapping[str, float]:
        """Returns the times, to the minute, in seconds since 1970, of those that ever called.

        Names are those of identities and of credentials. Raises what Redis raises.
        """


@dataclass(frozen=True, slots=True)
class SecurityMesh:
    """The mechanisms of security in one server."""

    settings: Settings
    redis: Redis
    key: MeshKey
    mirror: Mirror
    directory: Directory
    events: SecurityEvents
    policies: PolicySource
    usage: LastUse
