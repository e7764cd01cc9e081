"""The tasks of a server, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.security.circuit_breakers import ALL_CLOSED, CircuitBreakers
from bxmesh.server.settings import Settings
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.mailboxes import Mailboxes
from bxmesh.server.tasks.mechanism import Tasks
from bxmesh.server.tasks.options import TaskOptions

__all__ = ["running_tasks"]


@asynccontextmanager
async def running_tasks(
    settings: Settings, redis: Redis, circuits: CircuitBreakers = ALL_CLOSED
) -> AsyncIterator[Tasks]:
    """Gives tasks out and looks after them within a block."""
    keys = Mailboxes(redis, settings.mailbox_options).keys
    async with (
        Bells(redis, keys.cancellations) as bells,
        Tasks(
            redis, LiveAgents(redis), bells, TaskOptions(seals=settings.seals), circuits
        ) as tasks,
    ):
        yield tasks
