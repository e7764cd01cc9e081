"""Who could take tasks: the live agents as the registry last told, kept up to date."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from bxmesh.registry.v1.agent_pb2 import (
    AGENT_STATUS_ACTIVE,
    AGENT_STATUS_DRAINING,
    Agent,
)
from bxmesh.server.live_agents import LiveAgents, RevisionCompactedError

_PAGE = 1000


class Departed(NamedTuple):
    """A registration that is over."""

    agent: Agent
    why: str


_WHY = {
    "deregistered": "left the mesh",
    "expired": "fell silent",
    "replaced": "was started anew",
}


def holder(agent: Agent) -> str:
    """Names an agent under one registration: another one of the same name begins without tasks."""
    return f"{agent.agent_id}@{agent.register_time.ToMicroseconds()}"


class Roster:
    """The live agents, by name and capability. Methods raise what Redis raises."""

    def __init__(self, agents: LiveAgents) -> None:
        self.agents: dict[str, Agent] = {}
        self.revision = -1
        self.departed: list[Departed] = []
        """Who has left and is not looked after yet."""
        self.gap = True
        """Whether somebody may have left unseen."""
        self._source = agents
        self._by_capability: defaultdict[str, set[str]] = defaultdict(set)
        self._turn = asyncio.Lock()

    async def refresh(self) -> None:
        """Catches up with the registry."""
        async with self._turn:
            try:
                await self._follow()
            except RevisionCompactedError:
                self.gap = True
                await self._read_all()

    async def _follow(self) -> None:
        if self.revision < 0:
            raise RevisionCompactedError
        more = True
        while more:
            changes, revision = await self._source.changes(self.revision, _PAGE)
            for change in changes:
                if change.kind in _WHY:
                    self.departed.append(Departed(change.agent, _WHY[change.kind]))
                    self._remove(change.agent.agent_id)
                else:
                    self._enter(change.agent)
            self.revision = revision
            more = len(changes) == _PAGE

    async def _read_all(self) -> None:
        snapshot = await self._source.snapshot()
        self.agents.clear()
        self._by_capability.clear()
        for agent in snapshot.agents:
            self._enter(agent)
        self.revision = snapshot.revision

    def _enter(self, agent: Agent) -> None:
        self._remove(agent.agent_id)
        self.agents[agent.agent_id] = agent
        for capability in agent.capabilities:
            self._by_capability[capability.name].add(agent.agent_id)

    def _remove(self, agent_id: str) -> None:
        agent = self.agents.pop(agent_id, None)
        for capability in agent.capabilities if agent else ():
            names = self._by_capability[capability.name]
            names.discard(agent_id)
            if not names:
                del self._by_capability[capability.name]

    def offering(
        self, capabilities: Collection[str], agent_id: str = "", without: Collection[str] = ()
    ) -> list[Agent]:
        """Returns who offers all the capabilities and will stay, whether or not it takes work now."""
        names: Iterable[str]
        if agent_id:
            names = (agent_id,) if agent_id in self.agents else ()
        else:
            sets = [self._by_capability.get(name, set()) for name in capabilities]
            names = set.intersection(*sets) if sets else ()
        wanted = set(capabilities)
        return [
            agent
            for name in names
            if name not in without
            and (agent := self.agents[name]).status != AGENT_STATUS_DRAINING
            and (not agent_id or wanted.issubset(c.name for c in agent.capabilities))
        ]

    def missing(self, capabilities: Iterable[str]) -> list[str]:
        """Returns the capabilities that nobody offers."""
        return [name for name in capabilities if not self.offering([name])]


def takes_work(agent: Agent) -> bool:
    """Returns whether an agent takes work now."""
    return agent.status == AGENT_STATUS_ACTIVE
