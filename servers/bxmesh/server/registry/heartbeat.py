"""What a heartbeat says about its agent."""

from __future__ import annotations

from bxmesh.registry.v1.agent_pb2 import Agent, KeepAliveRequest
from bxmesh.server.errors import invalid_argument

__all__ = ["apply"]

_MOST_METADATA = 64


def apply(beat: KeepAliveRequest, agent: Agent) -> bool:
    """Changes an agent by what a heartbeat sets; returns whether anything is different now.

    Raises MeshError INVALID_ARGUMENT when it would have too much metadata.
    """
    before = Agent()
    before.CopyFrom(agent)
    if beat.status:
        agent.status = beat.status
    if beat.HasField("current_load"):
        agent.current_load = beat.current_load
    if beat.HasField("active_tasks"):
        agent.active_tasks = beat.active_tasks
    for key, value in beat.metadata.items():
        if value:
            agent.metadata[key] = value
        else:
            agent.metadata.pop(key, None)
    if len(agent.metadata) > _MOST_METADATA:
        raise invalid_argument(
            "metadata",
            f"{agent.agent_id} would have {len(agent.metadata)}, at most {_MOST_METADATA} are kept",
            reason="TOO_MUCH_METADATA",
        )
    return agent != before
