"""Tasks: pieces of work from their assignment to their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict, TypeVar, cast

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.client.agents import payloads
from bxmesh.client.agents.messages import PRIORITIES, Priority
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.times import from_timestamp, to_duration
from bxmesh.client.errors import BxmeshError, from_status
from bxmesh.client.names import EnumNames

__all__ = [
    "AgentUtilisation",
    "Task",
    "TaskOptions",
    "TaskProgress",
    "TaskState",
    "TaskStats",
    "spec",
]

TaskState = Literal[
    "pending", "assigned", "running", "completed", "failed", "cancelled", "timed_out"
]

TASK_STATES = EnumNames(pb.TaskState, "TASK_STATE_")
_ENDS = ("completed", "failed", "cancelled", "timed_out")

T = TypeVar("T")


class TaskOptions(TypedDict, total=False):
    """What can be said about a task besides its type and parameters."""

    capabilities: Iterable[str]
    """What an agent must offer to get it; the task's type, where no agent is named."""
    agent_id: str
    """The agent that shall do it."""
    description: str
    """For people, at most 4096 characters."""
    priority: Priority | None
    """Its place among what waits; medium."""
    timeout: float | None
    """Seconds it may take from when it is assigned first; the capability's limit."""
    retry: RetryPolicy | None
    """How it is tried again; the server's default."""
    parent_task_id: str
    """The task on whose behalf it is done."""
    sticky_key: str
    """The same key goes to the same agent while it is alive and not full."""
    labels: Mapping[str, str]
    """For the caller's own use."""
    on_behalf_of: str
    """The identity for which it is done, whose permissions it takes too."""


@dataclass(frozen=True)
class TaskProgress:
    """How far a task is."""

    percent: float
    """Per cent done, 0 to 100."""
    message: str
    """For people."""
    update_time: datetime | None
    """When it was reported; None before the first report."""


@dataclass(frozen=True)
class Task:
    """A task as it stood at one revision."""

    task_id: str
    """The name."""
    task_type: str
    """What kind of task, for example geometry.minimize."""
    description: str
    """For people."""
    state: TaskState
    """Where it stands."""
    agent_id: str
    """The agent that has it; empty while it waits."""
    progress: TaskProgress
    """How far it is."""
    error: BxmeshError | None = field(compare=False)
    """Why it ended without a result, or why the last attempt failed."""
    attempts: int
    """How often it was given to an agent."""
    depth: int
    """How many parents it has above it."""
    parent_task_id: str
    """The task on whose behalf it is done; may be empty."""
    child_task_ids: tuple[str, ...]
    """Tasks that were assigned on its behalf."""
    required_capabilities: tuple[str, ...]
    """What an agent must offer to get it."""
    labels: dict[str, str]
    """For the caller's own use."""
    owner: str
    """The identity that assigned it."""
    on_behalf_of: str
    """The identity for which it is done; whoever does it asks for no more than that one may."""
    create_time: datetime | None
    """When it was assigned to the mesh."""
    update_time: datetime | None
    """When it changed last."""
    start_time: datetime | None
    """When an agent began it first."""
    end_time: datetime | None
    """When it ended."""
    revision: int
    """Grows with every change."""
    message: pb.Task = field(repr=False, compare=False)
    """The message of the contract."""

    @classmethod
    def from_message(cls, message: pb.Task) -> Task:
        """Returns the task that the message describes."""
        spec, progress = message.spec, message.progress
        return cls(
            task_id=message.task_id,
            task_type=spec.task_type,
            description=spec.description,
            state=cast(TaskState, TASK_STATES.name(message.state)),
            agent_id=message.agent_id,
            progress=TaskProgress(
                progress.percent, progress.message, from_timestamp(progress.update_time)
            ),
            error=from_status(message.error) if message.error.code else None,
            attempts=message.attempts,
            depth=message.depth,
            parent_task_id=spec.parent_task_id,
            child_task_ids=tuple(message.child_task_ids),
            required_capabilities=tuple(spec.required_capabilities),
            labels=dict(spec.labels),
            owner=message.owner,
            on_behalf_of=message.on_behalf_of or message.owner,
            create_time=from_timestamp(message.create_time),
            update_time=from_timestamp(message.update_time),
            start_time=from_timestamp(message.start_time),
            end_time=from_timestamp(message.end_time),
            revision=message.revision,
            message=message,
        )

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state in _ENDS

    @property
    def parameters(self) -> Any:
        """The input: parsed JSON, a protobuf message, or None."""
        return payloads.decode(self.message.spec.parameters)

    @property
    def result(self) -> Any:
        """What came out: parsed JSON, a protobuf message, or None."""
        return payloads.decode(self.message.result)

    def read_parameters(self, model: type[T]) -> T:
        """Returns the input as a pydantic model or protobuf message. Raises PayloadMismatch."""
        return payloads.read(self.message.spec.parameters, model)

    def read_result(self, model: type[T]) -> T:
        """Returns the result as a pydantic model or protobuf message. Raises PayloadMismatch."""
        return payloads.read(self.message.result, model)


@dataclass(frozen=True)
class AgentUtilisation:
    """How much of its time an agent worked."""

    agent_id: str
    """The agent."""
    utilisation: float
    """The part of its slots that was in use, 0 to 1."""
    completed: int
    """Tasks that it completed."""
    failed: int
    """Tasks that failed with it."""


@dataclass(frozen=True)
class TaskStats:
    """Figures about tasks."""

    by_state: dict[str, int]
    """Tasks by state now or, when they have ended, in the period."""
    completion_rate: float
    """Of those that ended, the part that was completed, 0 to 1."""
    throughput: float
    """Tasks that ended per second."""
    latency_p50: float
    """From assignment to end in seconds, the median."""
    latency_p95: float
    """The same, 95th percentile."""
    latency_p99: float
    """The same, 99th percentile."""
    queue_depth: int
    """Tasks that wait now."""
    agents: tuple[AgentUtilisation, ...]
    """Per agent, the busiest first."""

    @classmethod
    def from_message(cls, message: pb.GetTaskStatsResponse) -> TaskStats:
        """Returns the figures that the message holds."""
        return cls(
            by_state={
                name.removeprefix("TASK_STATE_").lower(): count
                for name, count in sorted(message.tasks_by_state.items())
            },
            completion_rate=message.completion_rate,
            throughput=message.throughput,
            latency_p50=message.latency_p50.ToTimedelta().total_seconds(),
            latency_p95=message.latency_p95.ToTimedelta().total_seconds(),
            latency_p99=message.latency_p99.ToTimedelta().total_seconds(),
            queue_depth=message.queue_depth,
            agents=tuple(
                AgentUtilisation(one.agent_id, one.utilisation, one.completed, one.failed)
                for one in message.agents
            ),
        )


def spec(task_type: str, parameters: object, options: TaskOptions) -> pb.TaskSpec:
    """Returns what is to be done as a message."""
    agent_id = options.get("agent_id", "")
    retry = options.get("retry")
    return pb.TaskSpec(
        task_type=task_type,
        description=options.get("description", ""),
        parameters=payloads.encode(parameters),
        required_capabilities=options.get("capabilities", () if agent_id else (task_type,)),
        agent_id=agent_id,
        priority=PRIORITIES.number(options.get("priority")),
        timeout=to_duration(options.get("timeout")),
        retry_policy=None if retry is None else retry.to_message(),
        parent_task_id=options.get("parent_task_id", ""),
        sticky_key=options.get("sticky_key", ""),
        labels=options.get("labels", {}),
    )
