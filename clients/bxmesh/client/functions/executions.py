"""Executions: calls of stored functions, and how they ended."""

# ruff: noqa: N818 - FunctionFailed is named like TaskFailed

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict, cast

import grpc

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.client.agents import payloads
from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.errors import BxmeshError, FailedPrecondition, from_status
from bxmesh.client.functions.json_values import from_value, to_struct
from bxmesh.client.functions.stored import FunctionLimits
from bxmesh.client.names import EnumNames

__all__ = [
    "STATES",
    "ExecuteOptions",
    "Execution",
    "ExecutionEvent",
    "ExecutionState",
    "FunctionFailed",
    "FunctionStats",
    "to_request",
]

ExecutionState = Literal["pending", "running", "completed", "failed", "cancelled", "limit_exceeded"]

STATES = EnumNames(pb.ExecutionState, "EXECUTION_STATE_")


class ExecuteOptions(TypedDict, total=False):
    """What can be said about a call besides its function and arguments."""

    version: str
    """A version, digest or alias; latest."""
    limits: FunctionLimits | None
    """Tighter ones than the function's."""
    durable: bool
    """Whether it survives a restart of the mesh and is tried again."""
    retry: RetryPolicy | None
    """How it is tried again, when it is durable; the server's default."""
    on_behalf_of: str
    """The identity for which it is done, whose permissions it takes too."""
    parent_task_id: str
    """The task on whose behalf it is executed: what the function assigns are children of it."""


class FunctionFailed(BxmeshError):
    """An execution ended without a value; its code and reason are those of what went wrong."""

    def __init__(self, execution: Execution) -> None:
        error = execution.error
        what = {"cancelled": "was cancelled", "limit_exceeded": "was over a limit"}
        super().__init__(
            f"{execution.function_name} {what.get(execution.state, 'failed')}"
            + (f": {error.message}" if error else ""),
            code=error.code if error else grpc.StatusCode.UNKNOWN,
            reason=error.reason if error else f"EXECUTION_{execution.state.upper()}",
            metadata={
                **(error.metadata if error else {}),
                "execution_id": execution.execution_id,
            },
            field_violations=error.field_violations if error else (),
            trace_id=error.trace_id if error else "",
        )
        self.execution = execution
        """The execution as it ended."""

    @property
    def line(self) -> int | None:
        """The line of the code that raised; None where none did."""
        return int(self.metadata.get("line", "0")) or None

    @property
    def printed(self) -> str:
        """What it printed before."""
        return self.execution.printed


@dataclass(frozen=True)
class Execution:
    """One call of a function as it stood."""

    execution_id: str
    """The name."""
    function_name: str
    """The function."""
    function_version: str
    """Its version."""
    state: ExecutionState
    """Where it stands."""
    output: Any
    """What it returned; None before, and when it returned that."""
    printed: str
    """What it printed, cut at its limit; empty in lists."""
    error: BxmeshError | None = field(compare=False)
    """Why it failed, or why the last attempt did."""
    owner: str
    """The identity that called it."""
    create_time: datetime | None
    """When it was called."""
    start_time: datetime | None
    """When it began."""
    end_time: datetime | None
    """When it ended."""
    cpu_time: float
    """How long it computed, in seconds."""
    peak_memory: int
    """The most memory it held, in bytes."""
    attempts: int
    """How often it was tried."""
    message: pb.Execution = field(repr=False, compare=False)
    """The message of the contract."""

    @classmethod
    def from_message(cls, message: pb.Execution) -> Execution:
        """Returns the execution that the message describes."""
        return cls(
            execution_id=message.execution_id,
            function_name=message.function_name,
            function_version=message.function_version,
            state=cast(ExecutionState, STATES.name(message.state)),
            output=from_value(message.output),
            printed=message.printed,
            error=from_status(message.error) if message.error.code else None,
            owner=message.owner,
            create_time=from_timestamp(message.create_time),
            start_time=from_timestamp(message.start_time),
            end_time=from_timestamp(message.end_time),
            cpu_time=message.cpu_time.ToNanoseconds() / 1e9,
            peak_memory=message.peak_memory_bytes,
            attempts=message.attempts,
            message=message,
        )

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("pending", "running")

    @property
    def duration(self) -> float | None:
        """Seconds from begin to end; None unless it has both."""
        if self.start_time is None or self.end_time is None:
            return None
        return (self.end_time - self.start_time).total_seconds()

    @property
    def value(self) -> Any:
        """What it returned. Raises FunctionFailed when it failed, FailedPrecondition before its end."""
        if self.state == "completed":
            return self.output
        if self.done:
            raise FunctionFailed(self)
        raise FailedPrecondition(
            f"execution {self.execution_id} is {self.state}: wait for its end",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            reason="EXECUTION_NOT_ENDED",
        )


@dataclass(frozen=True)
class ExecutionEvent:
    """One thing that an execution told on its way."""

    kind: Literal["started", "printed", "progress", "ended"]
    """What happened."""
    execution: Execution | None = None
    """How it stands, when it started or ended."""
    printed: str = ""
    """What it printed."""
    progress: Any = None
    """What it reported with mesh.progress."""

    @classmethod
    def from_message(cls, message: pb.StreamFunctionResponse) -> ExecutionEvent:
        """Returns the event that the message describes."""
        match message.WhichOneof("event"):
            case "started":
                return cls("started", execution=Execution.from_message(message.started))
            case "printed":
                return cls("printed", printed=message.printed)
            case "progress":
                return cls("progress", progress=payloads.decode(message.progress))
        return cls("ended", execution=Execution.from_message(message.ended))


@dataclass(frozen=True)
class FunctionStats:
    """Figures over the executions of a function that are kept."""

    executions: int
    """Those that ended."""
    completed: int
    """Of these, completed ones."""
    limit_exceeded: int
    """Of these, those over a limit."""
    duration_p50: float
    """From begin to end in seconds, the median."""
    duration_p95: float
    """The same, 95th percentile."""
    duration_p99: float
    """The same, 99th percentile."""
    last_time: datetime | None
    """When the last one ended; None without any."""

    @classmethod
    def from_message(cls, message: pb.GetFunctionStatsResponse) -> FunctionStats:
        """Returns the figures that the message holds."""
        return cls(
            executions=message.executions,
            completed=message.completed,
            limit_exceeded=message.limit_exceeded,
            duration_p50=message.duration_p50.ToNanoseconds() / 1e9,
            duration_p95=message.duration_p95.ToNanoseconds() / 1e9,
            duration_p99=message.duration_p99.ToNanoseconds() / 1e9,
            last_time=from_timestamp(message.last_time),
        )


def to_request(
    name: str, arguments: object, options: ExecuteOptions, request_id: str, *, detach: bool = False
) -> pb.ExecuteFunctionRequest:
    """Returns a call as a message. Raises InvalidInput for arguments that JSON does not hold."""
    limits, retry = options.get("limits"), options.get("retry")
    return pb.ExecuteFunctionRequest(
        request_id=request_id,
        name=name,
        version=options.get("version", ""),
        input=to_struct({} if arguments is None else arguments, "input"),
        limits=None if limits is None else limits.to_message(),
        durable=options.get("durable", False),
        retry_policy=None if retry is None else retry.to_message(),
        detach=detach,
        on_behalf_of=options.get("on_behalf_of", ""),
        parent_task_id=options.get("parent_task_id", ""),
    )
