"""The policy in force and the events, for a process that lets nobody in: a worker, or who keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from .audit import AuditLog
from .mesh_key import MeshKey
from .mirror import Mirror
from .policies import POLICY, Policies
from .recorder import Recorder
from .records import Records
from .violations import Violations

__all__ = ["outpost"]


@asynccontextmanager
async def outpost(redis: Redis, key: MeshKey) -> AsyncIterator[tuple[Policies, Recorder]]:
    """Follows the policy and records events within a block."""
    async with (
        Mirror(Records(redis, key), (POLICY,)) as mirror,
        Recorder(AuditLog(redis, key), Violations(redis, key)) as recorder,
    ):
        yield Policies(mirror), recorder
