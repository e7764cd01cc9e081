"""The calls on agents, messages, tasks and state that a mesh offers."""

from bxmesh.client.agents.calls.dead_letters import DeadLetterCalls
from bxmesh.client.agents.calls.live_agents import LiveAgentCalls
from bxmesh.client.agents.calls.messages import MessageCalls
from bxmesh.client.agents.calls.queues import QueueCalls
from bxmesh.client.agents.calls.states import StateCalls
from bxmesh.client.agents.calls.tasks import TaskCalls

__all__ = ["AgentCalls"]


class AgentCalls(LiveAgentCalls, MessageCalls, TaskCalls, StateCalls, DeadLetterCalls, QueueCalls):
    """What a mesh offers around agents."""
