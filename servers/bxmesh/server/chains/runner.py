"""Running chains as durable work: every step that has ended is written down before the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.agent.v1.chain_work_pb2 import ChainWork
from bxmesh.agent.v1.function_work_pb2 import OnBehalfOf
from bxmesh.server.chains.graph import ChainGraph, Step
from bxmesh.server.chains.progress import next_steps
from bxmesh.server.chains.steps import Calls, StepCall
from bxmesh.server.chains.store import ENDED, ChainStore, RunEndedError
from bxmesh.server.definitions.checks import MOST_DEPTH
from bxmesh.server.errors import MeshError, deadline_exceeded, internal
from bxmesh.server.json_schemas import SchemaError, find_misfit
from bxmesh.server.json_values import (
    NotJsonError,
    TooLargeError,
    json_aside,
    json_of,
    value_aside,
)
from bxmesh.server.security.on_behalf import Deputy
from bxmesh.server.streams import WorkContext
from bxmesh.server.streams.backoff import retry_delay
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.settlement import FINAL

__all__ = ["ChainRunner", "run_cancelled"]

_log = logging.getLogger(__name__)

_STEP_SECONDS = 3600.0
_MOST_AT_A_TIME = 16
_TOKEN_SECONDS = 3600.0
# What a run is given, and what its steps take and answer, may be as much together: it is read in one
# message.
_MOST_BYTES = 7 << 19


def run_cancelled() -> MeshError:
    """The error of a run that was cancelled."""
    return MeshError(grpc.StatusCode.CANCELLED, "RUN_CANCELLED", "The run was cancelled.")


class ChainRunner:
    """Runs chains from where they stand to their end."""

    def __init__(self, store: ChainStore, deputy: Deputy, bell: ChangeBell) -> None:
        self._store = store
        self._deputy = deputy
        self._bell = bell

    async def execute(self, context: WorkContext) -> Message | None:
        """Handles one item: a run, of which steps may have ended before."""
        work = ChainWork()
        context.item.payload.Unpack(work)
        try:
            run = await self._store.get(work.run_id)
        except MeshError as error:
            if error.reason == "RUN_NOT_FOUND":
                return None
            raise
        if run.state in ENDED:
            return None
        try:
            graph = await asyncio.to_thread(ChainGraph.of, run.chain, max_depth=MOST_DEPTH)
            state = _Run(
                run, graph, work, self._store, self._deputy, self._bell, lambda: context.cancelled
            )
            await state.go()
        except RunEndedError:
            return None
        return None


@dataclass
class _Connection:
    """Calls for a caller, renewed before its token ends."""

    deputy: Deputy
    caller: OnBehalfOf
    _calls: Calls | None = None
    _until: float = 0.0

    async def calls(self, seconds: float) -> Calls:
        if self._calls is None or time.monotonic() + seconds > self._until:
            length = max(_TOKEN_SECONDS, 2 * seconds)
            metadata = await self.deputy.metadata(self.caller, length)
            self._calls = Calls(self.deputy.channel, metadata)
            self._until = time.monotonic() + length
        return self._calls


@dataclass
class _Run:
    """One run under way."""

    run: pb.ChainRun
    graph: ChainGraph
    work: ChainWork
    store: ChainStore
    deputy: Deputy
    bell: ChangeBell
    cancelled: Callable[[], bool]
    """Whether the run was cancelled; its server may also just be stopping."""
    input: Any = None
    steps: dict[str, pb.StepRun] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    over: bool = False
    changed: set[str] = field(default_factory=set)
    due: list[Step] = field(default_factory=list)
    """What begins as soon as what has changed is written."""
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: dict[asyncio.Task[Any], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.input = json_of(self.run.input)
        self.size = self.run.chain.ByteSize() + self.run.input.ByteSize()
        self.connection = _Connection(self.deputy, self.work.caller)
        for place, step in enumerate(self.run.steps):
            self.steps[step.step_id] = step
            self.places[step.step_id] = place
            self.size += step.input.ByteSize() + step.output.ByteSize()
            if step.state == pb.RUN_STATE_COMPLETED:
                self.outputs[step.step_id] = json_of(step.output)

    async def go(self) -> None:
        """Goes on to the end."""
        self.run.state = pb.RUN_STATE_RUNNING
        whole = True
        try:
            async with asyncio.timeout(self._left()) as timeout:
                for name, step in self.steps.items():
                    if step.state == pb.RUN_STATE_RUNNING:
                        # Its server was lost: a task is found again by its request id, a function
                        # is executed once more.
                        self.due.append(self.graph.steps[name])
                while await self._advance():
                    await self._save(whole=whole)
                    whole = False
                    await self._wait()
            await self._end()
        except TimeoutError:
            if not timeout.expired():
                raise
            await self._give_up(
                pb.RUN_STATE_TIMED_OUT,
                deadline_exceeded("The chain took longer than it may.", reason="CHAIN_TIMED_OUT"),
            )
        finally:
            await end_tasks(*self.tasks)

    def _left(self) -> float | None:
        if not self.run.chain.HasField("timeout"):
            return None
        began = self.run.create_time.ToNanoseconds() / 1e9
        length = self.run.chain.timeout.ToNanoseconds() / 1e9
        return max(0.0, began + length - time.time()) if length else None

    async def _advance(self) -> bool:
        """Decides what can begin; whether anything is under way or due."""
        while True:
            coming = next_steps(self.graph, {name: step.state for name, step in self.steps.items()})
            for name in coming.skip:
                self._mark(name, pb.RUN_STATE_SKIPPED)
            room = _MOST_AT_A_TIME - len(self.tasks) - len(self.due)
            progressed = bool(coming.skip)
            for name in coming.ready[: max(0, room)]:
                await self._decide(name)
                progressed = True
            if not progressed:
                return bool(self.tasks or self.due)

    async def _decide(self, name: str) -> None:
        """Lets a step begin, or leaves it out."""
        step = self.graph.steps[name]
        try:
            if step.condition is not None and not await asyncio.to_thread(
                self.graph.holds, name, self.input, self.outputs
            ):
                self._mark(name, pb.RUN_STATE_SKIPPED)
                return
            if step.mapping:
                value = await asyncio.to_thread(self.graph.input_of, name, self.input, self.outputs)
            else:
                value = self.graph.input_of(name, self.input, self.outputs)
            self.steps[name].input.CopyFrom(await self._kept(value))
        except NotJsonError as error:
            self._fail(name, internal(str(error), reason="INPUT_INVALID"))
            return
        except MeshError as error:
            self._fail(name, error)
            return
        self.steps[name].attempts = 1
        self.steps[name].start_time.GetCurrentTime()
        self._mark(name, pb.RUN_STATE_RUNNING)
        self.due.append(step)

    async def _kept(self, value: Any) -> Value:
        """Raises NotJsonError also for what the run has no room for."""
        left = _MOST_BYTES - self.size
        try:
            kept = await value_aside(value, left)
            if (size := kept.ByteSize()) > left:
                raise TooLargeError("", "is too large")
        except TooLargeError:
            raise TooLargeError("", f"makes the run larger than {_MOST_BYTES} bytes") from None
        self.size += size
        return kept

    async def _attempts(self, step: Step) -> tuple[Any, str]:
        record = self.steps[step.step_id]
        timeout = step.message.timeout.ToNanoseconds() / 1e9 or _STEP_SECONDS
        value = await json_aside(record.input)
        while True:
            calls = await self.connection.calls(timeout)
            call = StepCall(
                step,
                value,
                f"{self.run.run_id}:{self.places[step.step_id]}:{record.attempts}",
                timeout,
                self.work.parent_task_id,
                self.work.on_behalf_of,
                lambda: self.over or self.cancelled(),
            )
            try:
                async with asyncio.timeout(timeout) as limit:
                    return await calls.call(call)
            except TimeoutError:
                if not limit.expired():
                    raise
                error = deadline_exceeded(
                    f"The step took longer than {timeout:g} seconds.", reason="STEP_TIMED_OUT"
                )
            except MeshError as problem:
                error = problem
            if not self._again(step, record.attempts, error):
                raise error
            await asyncio.sleep(retry_delay(step.message.retry_policy, record.attempts))
            record.attempts += 1
            record.error.CopyFrom(error.to_status())
            self.changed.add(step.step_id)
            await self._save()

    def _again(self, step: Step, attempts: int, error: MeshError) -> bool:
        policy = step.message.retry_policy
        if error.code is grpc.StatusCode.UNAVAILABLE and not policy.max_attempts:
            # Something is away for a moment; nobody has to ask for patience.
            return attempts < 3
        if (
            step.function is None
            and attempts >= 1
            and error.code is not grpc.StatusCode.UNAVAILABLE
        ):
            # Tasks are tried again by themselves.
            return False
        return (
            attempts < policy.max_attempts
            and error.code not in FINAL
            and error.reason not in policy.non_retryable_reasons
        )

    async def _wait(self) -> None:
        """Waits until something has ended, and takes it in."""
        done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await self._settle(self.tasks.pop(task), task)

    async def _settle(self, name: str, task: asyncio.Task[tuple[Any, str]]) -> None:
        step = self.steps[name]
        error = task.exception()
        if isinstance(error, RunEndedError):
            raise error
        if error is None:
            value, step.agent_id = task.result()
            try:
                step.output.CopyFrom(await self._kept(value))
            except NotJsonError as problem:
                self._fail(name, internal(str(problem), reason="OUTPUT_INVALID"))
                return
            self.outputs[name] = value
            step.ClearField("error")
            self._mark(name, pb.RUN_STATE_COMPLETED)
        elif isinstance(error, MeshError):
            self._fail(name, error)
        else:
            _log.error("the step %s of run %s failed", name, self.run.run_id, exc_info=error)
            self._fail(name, internal("The step failed for a fault of the mesh."))

    def _fail(self, name: str, error: MeshError) -> None:
        self.steps[name].error.CopyFrom(error.to_status())
        late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        self._mark(name, pb.RUN_STATE_TIMED_OUT if late else pb.RUN_STATE_FAILED)

    def _mark(self, name: str, state: pb.RunState.ValueType) -> None:
        step = self.steps[name]
        step.state = state
        if state in ENDED:
            step.end_time.GetCurrentTime()
        self.changed.add(name)

    async def _save(self, *, whole: bool = False) -> None:
        """Writes what has changed, begins what is due after that, and tells those who watch."""
        async with self.saving:
            names, self.changed = self.changed, set()
            due, self.due = self.due, []
            try:
                if names or whole:
                    await self.store.save(
                        self.run,
                        {self.places[name]: self.steps[name] for name in names},
                        whole=whole,
                    )
            except BaseException:
                self.changed |= names
                raise
            for step in due:
                self.tasks[asyncio.create_task(self._attempts(step))] = step.step_id
        if names or whole:
            await self.bell.ring(self.run.run_id)

    async def _end(self) -> None:
        states = {name: step.state for name, step in self.steps.items()}
        failed = next_steps(self.graph, states).failed
        if failed:
            first = failed[0]
            late = states[first] == pb.RUN_STATE_TIMED_OUT
            cause = MeshError.from_status(self.steps[first].error)
            error = MeshError(
                cause.code,
                cause.reason,
                f"The step {first} failed: {cause.message}",
                metadata={**cause.metadata, "step": first},
            )
            await self._give_up(pb.RUN_STATE_TIMED_OUT if late else pb.RUN_STATE_FAILED, error)
            return
        try:
            value = await asyncio.to_thread(self.graph.output_of, self.input, self.outputs)
            self.run.output.CopyFrom(await self._kept(value))
            await asyncio.to_thread(self._check_output, value)
        except (NotJsonError, MeshError) as problem:
            self.run.ClearField("output")
            error = (
                problem
                if isinstance(problem, MeshError)
                else internal(str(problem), reason="OUTPUT_INVALID")
            )
            await self._give_up(pb.RUN_STATE_FAILED, error)
            return
        self.run.state = pb.RUN_STATE_COMPLETED
        self.run.end_time.GetCurrentTime()
        await self._save(whole=True)

    def _check_output(self, value: Any) -> None:
        schema = self.run.chain.output_schema
        if schema.WhichOneof("kind") != "json_schema":
            return
        try:
            misfit = find_misfit(value, schema, self.run.output.ByteSize())
        except SchemaError as error:
            raise internal(
                f"The output's schema fails: {error}", reason="OUTPUT_MISMATCH"
            ) from None
        if misfit:
            raise MeshError(
                grpc.StatusCode.ABORTED,
                "OUTPUT_MISMATCH",
                f"output{misfit.path}: {misfit.problem}",
            )

    async def _give_up(self, state: pb.RunState.ValueType, error: MeshError) -> None:
        self.over = True
        await end_tasks(*self.tasks)
        self.tasks.clear()
        for name, step in self.steps.items():
            if step.state not in ENDED:
                running = step.state == pb.RUN_STATE_RUNNING
                self._mark(name, pb.RUN_STATE_CANCELLED if running else pb.RUN_STATE_SKIPPED)
        self.run.state = state
        self.run.error.CopyFrom(error.to_status())
        self.run.end_time.GetCurrentTime()
        await self._save(whole=True)
