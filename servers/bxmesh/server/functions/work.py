"""Executions as durable work: they survive their server, are tried again, and end as dead letters."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
from google.protobuf.message import Message

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1.function_work_pb2 import FunctionWork
from bxmesh.server.errors import MeshError
from bxmesh.server.functions.cache import FunctionCache
from bxmesh.server.functions.checking import checked_input
from bxmesh.server.functions.executor import Executor, Plan, cancelled_error, new_execution
from bxmesh.server.functions.host_functions import HostCalls
from bxmesh.server.functions.records import Record
from bxmesh.server.security.on_behalf import Deputy
from bxmesh.server.streams import (
    Ticket,
    WorkClient,
    WorkContext,
    Worker,
    WorkerOptions,
    WorkQueue,
)
from bxmesh.server.streams.backoff import retry_delay
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.keys import reply_channel
from bxmesh.server.streams.replies import Submission
from bxmesh.server.streams.settlement import FINAL
from bxmesh.server.time_ids import age_of

__all__ = ["DurableExecutions", "durable_executions"]


_KIND = "function.execute"


class DurableExecutions:
    """Puts executions into the queue, and takes them out of it."""

    def __init__(
        self,
        queue: WorkQueue,
        client: WorkClient,
        cache: FunctionCache,
        executor: Executor,
        deputy: Deputy,
    ) -> None:
        self._queue = queue
        self._client = client
        self._cache = cache
        self._executor = executor
        self._history = executor.history
        self._deputy = deputy

    async def add(self, work: FunctionWork, execution: pb.Execution, *, waited_for: bool) -> None:
        """Enters an execution; it is durable when this returns. Raises what `WorkQueue.enqueue`
        raises, and MeshError UNAVAILABLE without the database."""
        await self._history.keep(Record(execution, durable=True))
        try:
            await self._queue.enqueue(
                _KIND,
                work,
                item_id=execution.execution_id,
                # So that its end is remembered, whoever waits.
                request_id=execution.execution_id,
                reply_to=reply_channel(self._client.server_id) if waited_for else "",
                max_attempts=work.retry_policy.max_attempts or None,
                identity=execution.owner,
            )
        except MeshError:
            await self._history.forget(execution.execution_id)
            raise

    @asynccontextmanager
    async def followed(self, execution_id: str) -> AsyncIterator[Submission]:
        """Hears of an execution that is, or will be, entered here; leaving the block lets it be."""
        ticket = Ticket(execution_id, execution_id, "", "", repeated=False)
        with self._client.following(self._queue, ticket) as submission:
            yield submission

    async def cancel(self, record: Record) -> Record:
        """Cancels an execution that has not ended."""
        execution = record.execution
        execution.state = pb.EXECUTION_STATE_CANCELLED
        execution.end_time.GetCurrentTime()
        execution.error.CopyFrom(cancelled_error().to_status())
        await self._history.keep(record)
        ticket = Ticket(execution.execution_id, execution.execution_id, "", "", repeated=False)
        await self._queue.cancel(ticket)
        return await self._history.get(execution.execution_id)

    async def settled(self, record: Record) -> Record:
        """Returns an execution as it stands; writes its end down when whoever ran it could not."""
        if record.ended or not record.durable:
            return record
        name = record.execution.execution_id
        outcome = await self._queue.outcome(name)
        if outcome is None and not await self._queue.lost(name, age_of(name)):
            return record
        again = await self._history.get(name)
        if again.ended:
            return again
        execution = again.execution
        execution.state = pb.EXECUTION_STATE_FAILED
        if outcome is None:
            execution.error.CopyFrom(_lost().to_status())
        else:
            execution.error.CopyFrom(outcome.status)
            execution.attempts = outcome.attempts
        execution.end_time.GetCurrentTime()
        await self._history.keep(again)
        return again

    # Doing

    async def execute(self, context: WorkContext) -> Message:
        """Handles one item: one attempt at an execution."""
        work = FunctionWork()
        context.item.payload.Unpack(work)
        try:
            record = await self._history.get(work.execution_id)
        except MeshError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            # The database was emptied meanwhile; the work was not.
            record = None
        if record is not None and record.ended:
            return record.execution
        execution = record.execution if record else pb.Execution(execution_id=work.execution_id)
        try:
            return await self._attempt(work, execution, context)
        except MeshError as error:
            raise await self._again_or_never(work, execution, error, context) from error

    async def _attempt(
        self, work: FunctionWork, execution: pb.Execution, context: WorkContext
    ) -> pb.Execution:
        stored = await self._cache.get(work.name, work.version)
        fresh = new_execution(work.execution_id, stored, work.caller.identity_id)
        if execution.HasField("create_time"):
            fresh.create_time.CopyFrom(execution.create_time)
        fresh.attempts = context.attempt
        execution.CopyFrom(fresh)
        events: asyncio.Queue[pb.StreamFunctionResponse] = asyncio.Queue()
        teller = asyncio.create_task(_hand_on(events, context))
        try:
            plan = Plan(
                stored,
                await checked_input(stored.function, work.input, "input"),
                work.limits,
                execution,
                work.caller,
                durable=True,
                host=partial(HostCalls, self._deputy, work.caller, work.parent_task_id),
            )
            await self._executor.execute(plan, events.put_nowait)
            await events.join()
        finally:
            await end_tasks(teller)
        if execution.state == pb.EXECUTION_STATE_COMPLETED:
            await self._history.keep(Record(execution, durable=True))
            return execution
        error = MeshError.from_status(execution.error)
        if execution.state == pb.EXECUTION_STATE_LIMIT_EXCEEDED:
            # It would want as much again.
            raise MeshError(grpc.StatusCode.FAILED_PRECONDITION, error.reason, error.message)
        raise error

    async def _again_or_never(
        self, work: FunctionWork, execution: pb.Execution, error: MeshError, context: WorkContext
    ) -> MeshError:
        policy = work.retry_policy
        if error.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            # What the queue would take for its own.
            error = MeshError(grpc.StatusCode.ABORTED, error.reason, error.message)
        if error.reason in policy.non_retryable_reasons:
            error = MeshError(grpc.StatusCode.FAILED_PRECONDITION, error.reason, error.message)
        over = error.code in FINAL or context.attempt >= context.item.max_attempts
        if not over:
            execution.state = pb.EXECUTION_STATE_PENDING
            execution.ClearField("end_time")
            error.retry_after = retry_delay(policy, context.attempt)
        elif execution.state != pb.EXECUTION_STATE_LIMIT_EXCEEDED:
            execution.state = pb.EXECUTION_STATE_FAILED
            execution.end_time.GetCurrentTime()
        if not execution.HasField("error"):
            execution.error.CopyFrom(error.to_status())
        await self._history.keep(Record(execution, durable=True))
        return error


def _lost() -> MeshError:
    return MeshError(
        grpc.StatusCode.DATA_LOSS,
        "EXECUTION_LOST",
        "Nobody has the execution any more. Execute the function again.",
    )


async def _hand_on(events: asyncio.Queue[pb.StreamFunctionResponse], context: WorkContext) -> None:
    while True:
        await context.progress(await events.get())
        events.task_done()


@asynccontextmanager
async def durable_executions(
    queue: WorkQueue,
    client: WorkClient,
    cache: FunctionCache,
    executor: Executor,
    deputy: Deputy,
    concurrency: int,
) -> AsyncIterator[DurableExecutions]:
    """Takes executions out of the queue within a block."""
    executions = DurableExecutions(queue, client, cache, executor, deputy)
    worker = Worker(
        queue.redis,
        queue.options,
        WorkerOptions(
            f"functions-{uuid.uuid4().hex[:12]}",
            concurrency=concurrency,
            handlers={_KIND: executions.execute},
        ),
    )
    async with worker.running():
        yield executions
