"""Which agents fit, and which of them gets the work."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Sequence

from bxmesh.registry.v1.agent_pb2 import (
    AGENT_STATUS_ACTIVE,
    AGENT_STATUS_BUSY,
    Agent,
    AgentFilter,
    AgentStatus,
)
from bxmesh.server.errors import not_found, unavailable

__all__ = ["best_first", "fits", "free_slots", "missing_capabilities", "select", "sticky_score"]

_ACTIVE = (AGENT_STATUS_ACTIVE,)
_STAYING = (AGENT_STATUS_ACTIVE, AGENT_STATUS_BUSY)
_RETRY_SECONDS = 1.0


def fits(
    agent: Agent, wanted: AgentFilter, default_statuses: Collection[AgentStatus.ValueType] = ()
) -> bool:
    """Returns whether all that a filter sets holds; without statuses the default ones do."""
    statuses = wanted.statuses or default_statuses
    return (
        wanted.agent_type in ("", agent.agent_type)
        and wanted.version in ("", agent.version)
        and (not statuses or agent.status in statuses)
        and {c.name for c in agent.capabilities}.issuperset(wanted.capabilities)
        and all(agent.metadata.get(key) == value for key, value in wanted.metadata.items())
    )


def free_slots(agent: Agent) -> float:
    """Returns how many more tasks an agent takes: by its tasks or by its load, the lesser."""
    by_load = agent.max_concurrent_tasks * (1.0 - agent.current_load)
    return max(0.0, min(agent.max_concurrent_tasks - agent.active_tasks, by_load))


def missing_capabilities(agents: Iterable[Agent], wanted: AgentFilter) -> list[str]:
    """Returns the required capabilities that no agent offers."""
    offered = {capability.name for agent in agents for capability in agent.capabilities}
    return [name for name in wanted.capabilities if name not in offered]


def best_first(agents: Iterable[Agent], wanted: AgentFilter) -> list[Agent]:
    """Returns those that fit, active ones unless said otherwise, by free capacity, then name."""
    found = [agent for agent in agents if fits(agent, wanted, _ACTIVE)]
    return sorted(found, key=lambda agent: (-free_slots(agent), agent.agent_id))


def select(
    agents: Sequence[Agent], wanted: AgentFilter, sticky_key: str, exclude: Collection[str]
) -> tuple[Agent, bool]:
    """Returns the owner of the key while it is not full, else another; whether it is the owner.

    Without a key it is the less loaded of two drawn at random. Raises MeshError NOT_FOUND when
    none fits, UNAVAILABLE when all that fit are full.
    """
    fitting = [agent for agent in agents if fits(agent, wanted, _STAYING)]
    if not fitting:
        raise _none_fits(agents, wanted)
    free = [
        agent
        for agent in fitting
        if fits(agent, wanted, _ACTIVE) and free_slots(agent) > 0 and agent.agent_id not in exclude
    ]
    if not free:
        raise unavailable(
            f"All {len(fitting)} agents that fit are busy or excluded. Try again in a moment.",
            retry_after=_RETRY_SECONDS,
            reason="AGENTS_BUSY",
        )
    if not sticky_key:
        drawn = random.sample(free, min(2, len(free)))
        return min(drawn, key=_load), False
    chosen = max(free, key=lambda agent: sticky_score(sticky_key, agent.agent_id))
    owner = max(fitting, key=lambda agent: sticky_score(sticky_key, agent.agent_id))
    return chosen, chosen is owner


def _none_fits(agents: Sequence[Agent], wanted: AgentFilter) -> Exception:
    missing = missing_capabilities(agents, wanted)
    if missing:
        message = f"No live agent offers {', '.join(missing)}."
    else:
        message = "No live agent fits the filter."
    return not_found(message, reason="NO_AGENT_FITS", missing_capabilities=",".join(missing))


def _load(agent: Agent) -> float:
    return max(agent.current_load, agent.active_tasks / max(1, agent.max_concurrent_tasks))


def sticky_score(key: str, agent_id: str) -> bytes:
    """Orders agents for a sticky key: the one with the highest owns it."""
    return hashlib.blake2b(f"{key}\0{agent_id}".encode(), digest_size=8).digest()
