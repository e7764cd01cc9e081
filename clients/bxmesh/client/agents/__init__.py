"""Agents: who they are, the messages and tasks they exchange, the state they keep."""

from bxmesh.client.agents.dead_letters import DeadLetter
from bxmesh.client.agents.live_agents import AgentEvent, AgentInfo, Discovery
from bxmesh.client.agents.messages import (
    BroadcastReceipt,
    DeliveryMode,
    Message,
    Priority,
    Receipt,
)
from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.agents.queues import QueueStats, Replay
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.states import AgentState
from bxmesh.client.agents.tasks import Task, TaskProgress, TaskState, TaskStats

__all__ = [
    "AgentEvent",
    "AgentInfo",
    "AgentState",
    "BroadcastReceipt",
    "DeadLetter",
    "DeliveryMode",
    "Discovery",
    "Message",
    "PayloadMismatch",
    "Priority",
    "QueueStats",
    "Receipt",
    "Replay",
    "RetryPolicy",
    "Task",
    "TaskProgress",
    "TaskState",
    "TaskStats",
]
