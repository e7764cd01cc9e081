"""What the RPCs of the function service work with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from redis.asyncio import Redis

from bxmesh.server.functions.cache import FunctionCache
from bxmesh.server.functions.checking import Checks
from bxmesh.server.functions.executor import Executor
from bxmesh.server.functions.history import History
from bxmesh.server.functions.store import FunctionStore
from bxmesh.server.functions.work import DurableExecutions
from bxmesh.server.security.delegation import Delegation
from bxmesh.server.security.on_behalf import Deputy
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.keys import PREFIX, QueueKeys

__all__ = ["FunctionMesh", "Users"]


Users = Callable[[str, Collection[str]], AsyncIterator[tuple[str, str]]]
"""Yields the active definitions of some owners that use a function, each with the version that it asks
for."""


@dataclass(frozen=True)
class FunctionMesh:
    """Functions, what executes them, and what is kept of it."""

    redis: Redis
    keys: QueueKeys
    checks: Checks
    store: FunctionStore
    cache: FunctionCache
    history: History
    executor: Executor
    durable: DurableExecutions
    deputy: Deputy
    users: Users
    delegation: Delegation
    max_open_executions: int
    """Durable ones of one identity."""

    @property
    def cancellations(self) -> str:
        """The channel on which servers hear which executions end."""
        return f"{PREFIX}:functions:cancellations"

    async def cancel_everywhere(self, execution_id: str) -> None:
        """Cancels an execution on whichever server it runs."""
        with redis_errors():
            await self.redis.publish(self.cancellations, execution_id)

    def hear(self, data: bytes) -> None:
        """Cancels an execution if it runs here."""
        self.executor.cancel(data.decode(errors="replace"))
