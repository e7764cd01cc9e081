"""Executing functions: input checked, run, output checked, written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1.function_work_pb2 import OnBehalfOf
from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.functions.checking import Checks, checked_output
from bxmesh.server.functions.engine import Call, Outcome
from bxmesh.server.functions.history import History
from bxmesh.server.functions.host_functions import HostCalls
from bxmesh.server.functions.limits import tightest
from bxmesh.server.functions.places import Places
from bxmesh.server.functions.records import Record
from bxmesh.server.functions.store import Stored

__all__ = ["Executor", "Plan", "cancelled_error", "new_execution"]

Tell = Callable[[pb.StreamFunctionResponse], None]


def _tell_nobody(event: pb.StreamFunctionResponse) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Plan:
    """An execution that is to be."""

    stored: Stored
    arguments: Mapping[str, Any]
    """By keyword; they fit."""
    limits: pb.FunctionLimits
    """Tighter than the function's."""
    execution: pb.Execution
    """As it stands; it is changed in place."""
    caller: OnBehalfOf
    """For whom."""
    durable: bool
    host: Callable[[float, Tell], HostCalls]
    """Makes what the host functions call with, for so many seconds at most."""


class Executor:
    """Executes functions, in places; others wait for one, and not too many of them."""

    def __init__(self, checks: Checks, history: History, places: Places, most_waiting: int) -> None:
        self.checks = checks
        self.history = history
        self._places = places
        self._most_waiting = most_waiting
        self._running: dict[str, asyncio.Task[None]] = {}

    def require_room(self, owner: str) -> None:
        """Raises MeshError RESOURCE_EXHAUSTED (TOO_MANY_EXECUTIONS) when too many wait, or too many of
        an owner."""
        waiting, own = self._places.waiting, self._places.waiting_of(owner)
        # So that nobody has all the room.
        if waiting >= self._most_waiting or own > self._most_waiting // 2:
            raise resource_exhausted(
                f"{waiting} executions wait already, {own} of them yours. Try again later.",
                retry_after=1.0,
                reason="TOO_MANY_EXECUTIONS",
                subject="functions",
            )

    async def execute(self, plan: Plan, tell: Tell = _tell_nobody) -> pb.Execution:
        """Executes a plan to its end, whatever that is, and tells of it on the way.

        Raises MeshError UNAVAILABLE when the sandbox is lost.
        """
        function, execution = plan.stored.function, plan.execution
        engine = self.checks.engine(function)
        printed: list[str] = []

        def hear(text: str) -> None:
            printed.append(text)
            tell(pb.StreamFunctionResponse(printed=text))

        async def run() -> None:
            async with self._places.taken(execution.owner) as place:
                execution.state = pb.EXECUTION_STATE_RUNNING
                execution.start_time.GetCurrentTime()
                self.history.note(Record(execution, plan.durable))
                tell(pb.StreamFunctionResponse(started=execution))
                limits = tightest(function.limits, plan.limits)
                async with plan.host(limits.timeout, tell) as host:
                    outcome = await engine.run(
                        Call(
                            function.code,
                            function.entry_point,
                            function.is_async,
                            plan.arguments,
                            limits,
                            place,
                            host.granted(function.host_functions),
                            hear,
                        )
                    )
                await _settle(execution, function, outcome, limits.output - _size(printed))

        task = asyncio.create_task(run())
        self._running[execution.execution_id] = task
        try:
            await asyncio.wait([task])
        finally:
            del self._running[execution.execution_id]
            if not task.done():
                # Whoever called has gone.
                task.cancel()
                await asyncio.wait([task])
            if task.cancelled():
                _end(execution, pb.EXECUTION_STATE_CANCELLED, cancelled_error())
            elif isinstance(error := task.exception(), MeshError):
                _end(execution, pb.EXECUTION_STATE_FAILED, error)
            execution.printed = "".join(printed)
            if not plan.durable and execution.HasField("end_time"):
                self.history.note(Record(execution, durable=False))
        if not task.cancelled():
            task.result()
        return execution

    def cancel(self, execution_id: str) -> bool:
        """Cancels an execution that runs here; whether one does."""
        task = self._running.get(execution_id)
        return task is not None and task.cancel()


def new_execution(execution_id: str, stored: Stored, owner: str) -> pb.Execution:
    """Returns an execution that has not begun."""
    execution = pb.Execution(
        execution_id=execution_id,
        function_name=stored.function.name,
        function_version=stored.function.version,
        state=pb.EXECUTION_STATE_PENDING,
        owner=owner,
        attempts=1,
    )
    execution.create_time.GetCurrentTime()
    return execution


def cancelled_error() -> MeshError:
    """The error of an execution that was cancelled."""
    return MeshError(
        grpc.StatusCode.CANCELLED, "EXECUTION_CANCELLED", "The execution was cancelled."
    )


async def _settle(
    execution: pb.Execution, function: pb.Function, outcome: Outcome, most_bytes: int
) -> None:
    execution.cpu_time.FromMicroseconds(int(outcome.cpu_seconds * 1e6))
    execution.peak_memory_bytes = outcome.peak_memory
    error, state = outcome.error, pb.EXECUTION_STATE_FAILED
    if outcome.limited:
        state = pb.EXECUTION_STATE_LIMIT_EXCEEDED
    if error is None:
        try:
            execution.output.CopyFrom(await checked_output(function, outcome.value, most_bytes))
            state = pb.EXECUTION_STATE_COMPLETED
        except MeshError as problem:
            error = problem
            if problem.reason == "OUTPUT_LIMIT":
                state = pb.EXECUTION_STATE_LIMIT_EXCEEDED
    _end(execution, state, error)


def _end(
    execution: pb.Execution, state: pb.ExecutionState.ValueType, error: MeshError | None
) -> None:
    execution.state = state
    execution.end_time.GetCurrentTime()
    execution.ClearField("error")
    if error is not None:
        execution.error.CopyFrom(error.to_status())


def _size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)
