"""Who lives, as it was a moment ago: looked up for every message, so not in Redis each time."""

from __future__ import annotations

import time
from collections import OrderedDict

import grpc

from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.errors import MeshError
from bxmesh.server.live_agents import LiveAgents, Snapshot
from bxmesh.server.streams.connection import redis_errors

__all__ = ["Directory"]

_FRESH_SECONDS = 1.0
_MOST_REMEMBERED = 10_000


class Directory:
    """Finds live agents by name. Who has left a moment ago may still be found."""

    def __init__(self, agents: LiveAgents) -> None:
        self._agents = agents
        self._known: OrderedDict[str, tuple[float, Agent]] = OrderedDict()
        self._snapshot: tuple[float, Snapshot] | None = None
        self._names: tuple[float, dict[str, set[str]]] | None = None

    async def find(self, agent_id: str) -> Agent | None:
        """Returns a live agent, None when there is none of that name."""
        now = time.monotonic()
        known = self._known.get(agent_id)
        if known is not None and now - known[0] < _FRESH_SECONDS:
            return known[1]
        try:
            with redis_errors():
                agent = await self._agents.get(agent_id)
        except MeshError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            self._known.pop(agent_id, None)
            return None
        self._known[agent_id] = now, agent
        self._known.move_to_end(agent_id)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return agent

    async def everybody(self) -> list[Agent]:
        """Returns all live agents, by name."""
        now = time.monotonic()
        if self._snapshot is None or now - self._snapshot[0] > _FRESH_SECONDS:
            with redis_errors():
                self._snapshot = now, await self._agents.snapshot()
        return self._snapshot[1].agents

    async def owner(self, agent_id: str) -> str:
        """Returns whose a mailbox is: that of a name that belongs to nobody is its own."""
        agent = await self.find(agent_id)
        if agent is not None:
            return agent.identity
        with redis_errors():
            return await self._agents.owner(agent_id) or agent_id

    async def owned_by(self, identity: str) -> set[str]:
        """Returns whose mailboxes are an identity's: its own and those of its agents, alive or not."""
        now = time.monotonic()
        if self._names is None or now - self._names[0] > _FRESH_SECONDS:
            names: dict[str, set[str]] = {}
            with redis_errors():
                for name, owner in (await self._agents.owners()).items():
                    names.setdefault(owner, set()).add(name)
            self._names = now, names
        return {identity, *self._names[1].get(identity, ())}
