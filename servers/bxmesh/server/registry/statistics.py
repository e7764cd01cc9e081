"""Figures of the registry."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from bxmesh.registry.v1.agent_pb2 import (
    AGENT_STATUS_ACTIVE,
    AGENT_STATUS_BUSY,
    AGENT_STATUS_DRAINING,
    Agent,
)
from bxmesh.registry.v1.discovery_pb2 import CapabilityStats, GetRegistryStatsResponse
from bxmesh.server.agent_selection import free_slots

__all__ = ["registry_stats"]

# A load of 0.9 leaves one of ten slots, though 10 * (1 - 0.9) is less than 1.
_ROUNDING = 1e-9


def registry_stats(agents: Sequence[Agent]) -> GetRegistryStatsResponse:
    """Returns the figures of some agents."""
    statuses = Counter(agent.status for agent in agents)
    by_capability: defaultdict[str, list[Agent]] = defaultdict(list)
    for agent in agents:
        for capability in agent.capabilities:
            by_capability[capability.name].append(agent)
    return GetRegistryStatsResponse(
        total_agents=len(agents),
        active_agents=statuses[AGENT_STATUS_ACTIVE],
        busy_agents=statuses[AGENT_STATUS_BUSY],
        draining_agents=statuses[AGENT_STATUS_DRAINING],
        average_load=_mean_load(agents),
        active_tasks=sum(agent.active_tasks for agent in agents),
        capabilities=[_capability(name, by_capability[name]) for name in sorted(by_capability)],
        agents_by_type=Counter(agent.agent_type for agent in agents),
    )


def _capability(name: str, agents: Sequence[Agent]) -> CapabilityStats:
    active = [agent for agent in agents if agent.status == AGENT_STATUS_ACTIVE]
    return CapabilityStats(
        capability=name,
        agents=len(agents),
        active_agents=len(active),
        total_slots=sum(agent.max_concurrent_tasks for agent in agents),
        free_slots=sum(math.floor(free_slots(agent) + _ROUNDING) for agent in active),
        average_load=_mean_load(agents),
    )


def _mean_load(agents: Sequence[Agent]) -> float:
    return sum(agent.current_load for agent in agents) / len(agents) if agents else 0.0
