"""Agents: who they are, the messages and tasks they exchange, the state they keep.

An agent is a class with handlers:

    class Validator(Agent[ValidatorState]):
        @on("validate.request", model=ValidateRequest)
        async def validate(self, message: Message, request: ValidateRequest) -> None:
            await self.update_state(lambda state: state.counted())
            await message.reply("validate.response", ValidateResponse(...))

        @task("geometry.minimize", model=MinimizeParameters)
        async def minimize(self, task: TaskContext, parameters: MinimizeParameters) -> Minimum:
            await task.progress(50, "half of the cycles")
            return Minimum(...)

    asyncio.run(Validator("validator-1", capabilities=["validation"]).run())

It may run in any process that reaches the mesh; it dials out. Durable messages and tasks come at
least once: what is not answered when a process or a connection dies comes again, with an attempt
above 1. A program that only sends needs no agent: `AsyncMesh` and `Mesh` have `send`, `request`,
`broadcast`, `assign_task` and their like, and a `Supervisor` hands out many tasks. A `Minion` is an
agent without a class: made of functions, it does tasks and tells supervisors what it is at.
"""

from bxmesh.client.agents.agent import Agent
from bxmesh.client.agents.assignment import Assignment
from bxmesh.client.agents.capabilities import Capability
from bxmesh.client.agents.dead_letters import DeadLetter
from bxmesh.client.agents.failures import Drop, HandlerCancelled, HandlerTimeout, Retry, Unhandled
from bxmesh.client.agents.handlers import on, task
from bxmesh.client.agents.live_agents import AgentEvent, AgentInfo, Discovery
from bxmesh.client.agents.messages import (
    BroadcastReceipt,
    DeliveryMode,
    Message,
    Priority,
    Receipt,
)
from bxmesh.client.agents.minion import Minion
from bxmesh.client.agents.minion_context import BlockingTaskContext
from bxmesh.client.agents.minion_info import MinionEvent, MinionInfo
from bxmesh.client.agents.minion_state import MinionError, MinionState, MinionTask, ToolTimes
from bxmesh.client.agents.minion_tools import tool
from bxmesh.client.agents.payloads import PayloadMismatch
from bxmesh.client.agents.queues import QueueStats, Replay
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.states import AgentState
from bxmesh.client.agents.stats import AgentStats, HandlerStats
from bxmesh.client.agents.supervisor import Supervisor
from bxmesh.client.agents.task_context import TaskContext
from bxmesh.client.agents.task_failures import TaskCancelled, TaskFailed, TaskTimedOut
from bxmesh.client.agents.tasks import Task, TaskProgress, TaskState, TaskStats
from bxmesh.client.agents.work_progress import WorkProgress

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentInfo",
    "AgentState",
    "AgentStats",
    "Assignment",
    "BlockingTaskContext",
    "BroadcastReceipt",
    "Capability",
    "DeadLetter",
    "DeliveryMode",
    "Discovery",
    "Drop",
    "HandlerCancelled",
    "HandlerStats",
    "HandlerTimeout",
    "Message",
    "Minion",
    "MinionError",
    "MinionEvent",
    "MinionInfo",
    "MinionState",
    "MinionTask",
    "PayloadMismatch",
    "Priority",
    "QueueStats",
    "Receipt",
    "Replay",
    "Retry",
    "RetryPolicy",
    "Supervisor",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskFailed",
    "TaskProgress",
    "TaskState",
    "TaskStats",
    "TaskTimedOut",
    "ToolTimes",
    "Unhandled",
    "WorkProgress",
    "on",
    "task",
    "tool",
]
