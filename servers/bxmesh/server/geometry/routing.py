"""Which worker gets which work: the one that holds the model warm, unless it is busy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from bxmesh.registry.v1 import agent_pb2
from bxmesh.server.agent_selection import sticky_score
from bxmesh.server.errors import unavailable
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.streams.connection import redis_errors

_REFRESH_SECONDS = 0.5
_NOBODY_SECONDS = 30.0


class Router:
    """Rendezvous hashing of models over the live workers, with spill when the owner is busy."""

    def __init__(self, agents: LiveAgents, capability: str) -> None:
        self._agents = agents
        self._capability = capability
        self._workers: list[agent_pb2.Agent] = []
        self._refreshed = 0.0
        self._last_seen = time.monotonic()
        self._in_flight: Counter[str] = Counter()
        self._refreshing = asyncio.Lock()

    async def workers(self, model_id: str) -> list[str]:
        """The live workers for a model, the one that should hold it warm first.

        Empty while a crashed worker is being replaced; raises MeshError UNAVAILABLE when there has
        been none for half a minute, and without Redis.
        """
        async with self._refreshing:
            if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
                with redis_errors():
                    self._workers, _ = await self._agents.list([self._capability])
                self._refreshed = time.monotonic()
        now = time.monotonic()
        usable = [
            agent.agent_id
            for agent in self._workers
            if agent.status != agent_pb2.AGENT_STATUS_DRAINING
        ]
        if usable:
            self._last_seen = now
        elif now - self._last_seen > _NOBODY_SECONDS:
            raise unavailable(
                "No geometry worker is alive. Start some: bxmesh serve --services workers.",
                retry_after=5.0,
                reason="NO_WORKERS",
            )
        return sorted(usable, key=lambda worker_id: sticky_score(model_id, worker_id), reverse=True)

    def choose(self, ranked: list[str], spread: int = 0) -> str:
        """One of the ranked workers: with `spread` 0 the owner unless the next has much less to do.

        Parts of one batch pass their index as `spread`, which begins the search that much later, so
        that they land on all workers. Returns "" when there is no worker.
        """
        if not ranked:
            return ""
        first = spread % len(ranked)
        order = [*ranked[first:], *ranked[:first]]
        capacity = {agent.agent_id: max(1, agent.max_concurrent_tasks) for agent in self._workers}
        for worker_id in order:
            if self._in_flight[worker_id] < 2 * capacity.get(worker_id, 1):
                return worker_id
        return min(order, key=lambda worker_id: self._in_flight[worker_id])

    def least_busy(self, ranked: list[str]) -> str:
        """The ranked worker with the least to do, of equals the first; "" when there is none.

        For what stays: a session is worth the model's second build, and several sessions of one model
        would share one core otherwise while others idle.
        """
        return min(ranked, key=lambda worker_id: self._in_flight[worker_id], default="")

    @contextlib.contextmanager
    def occupied(self, worker_id: str) -> Iterator[None]:
        """Counts work against a worker for as long as the block lasts."""
        self._in_flight[worker_id] += 1
        try:
            yield
        finally:
            self._in_flight[worker_id] -= 1
            if not self._in_flight[worker_id]:
                del self._in_flight[worker_id]
