"""What a task needs of an agent, and who would get it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.agent_selection import sticky_score
from bxmesh.server.tasks.keys import QUEUE_KEYS
from bxmesh.server.tasks.roster import Roster, holder, takes_work

# So many candidates go to Redis, which knows what they have; when all are full the task waits.
_MOST_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Demand:
    """What tasks need that are alike in this."""

    capabilities: tuple[str, ...]
    """What an agent must offer."""
    agent_id: str = ""
    """The only agent that may get it; empty means any."""
    without: tuple[str, ...] = ()
    """Agents that may not: they wait for its parents."""

    @property
    def text(self) -> str:
        """All of it as JSON."""
        return json.dumps([self.capabilities, self.agent_id, self.without])

    @property
    def name(self) -> str:
        """A short name."""
        return hashlib.blake2b(self.text.encode(), digest_size=10).hexdigest()

    @classmethod
    def parse(cls, text: str) -> Demand:
        """Reads `text`."""
        capabilities, agent_id, without = json.loads(text)
        return cls(tuple(capabilities), agent_id, tuple(without))

    def offered_by(self, roster: Roster) -> list[Agent]:
        """Returns who could meet it, now or later."""
        return roster.offering(self.capabilities, self.agent_id, self.without)

    def missing(self, roster: Roster) -> list[str]:
        """Returns the capabilities without which nobody meets it; all of them when each is offered,
        but not together."""
        agent = roster.agents.get(self.agent_id)
        if agent is not None:
            offered = {capability.name for capability in agent.capabilities}
            return [name for name in self.capabilities if name not in offered]
        return roster.missing(self.capabilities) or list(self.capabilities)


def in_order(agents: Sequence[Agent], sticky_key: str) -> list[Agent]:
    """Returns some of those that take work now: the owner of the key first, or drawn at random."""
    active = [agent for agent in agents if takes_work(agent)]
    if sticky_key:
        active.sort(key=lambda agent: sticky_score(sticky_key, agent.agent_id), reverse=True)
        return active[:_MOST_CANDIDATES]
    return random.sample(active, min(_MOST_CANDIDATES, len(active)))


def candidate(agent: Agent, capabilities: Sequence[str], timeout: float) -> Mapping[str, Any]:
    """What the scripts must know of an agent that may get a task; `timeout` is that of capabilities
    without one."""
    limits = [
        seconds
        for capability in agent.capabilities
        if capability.name in capabilities
        and (seconds := capability.timeout.ToNanoseconds() / 1e9) > 0
    ]
    return {
        "holder": holder(agent),
        "agent": agent.agent_id,
        "identity": agent.identity,
        "slots": max(1, agent.max_concurrent_tasks),
        "load": agent.current_load,
        "timeout": int(min(limits, default=timeout) * 1e6),
        "inbox": QUEUE_KEYS.inbox(agent.agent_id, 0)[:-1],
    }
