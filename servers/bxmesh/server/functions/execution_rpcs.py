"""The RPCs that execute functions and tell of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.agent.v1.function_work_pb2 import FunctionWork
from bxmesh.server.errors import MeshError, invalid_argument, resource_exhausted, unavailable
from bxmesh.server.functions.checking import checked_input
from bxmesh.server.functions.executor import Plan, new_execution
from bxmesh.server.functions.history import no_such_execution
from bxmesh.server.functions.host_functions import HostCalls
from bxmesh.server.functions.limits import tightest
from bxmesh.server.functions.mesh import FunctionMesh
from bxmesh.server.functions.records import Record
from bxmesh.server.functions.store import no_such_function
from bxmesh.server.interceptors import current_identity
from bxmesh.server.mutations import Mutation
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.pages import Batch, collect
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.on_behalf import caller_of
from bxmesh.server.security.ownership import may_change
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.time_ids import time_id

Context = grpc.aio.ServicerContext[Any, Any]

_LOOK_SECONDS = 0.1
_CANCEL_SECONDS = 5.0
_MARGIN_SECONDS = 5.0
Events = asyncio.Queue[pb.StreamFunctionResponse | None]


@asynccontextmanager
async def _forgotten_when_lost(mutation: Mutation) -> AsyncIterator[None]:
    """Around what a request id stands for: when it is lost, a repetition is a new try."""
    try:
        yield
    except MeshError as error:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            await mutation.forget()
        raise


def _server_lost() -> MeshError:
    return unavailable(
        "The server that ran it was lost with its answer. Try again.",
        reason="SERVER_LOST",
        retry_after=0.1,
    )


class ExecutionRpcs:
    """Execute, stream, get, list, cancel."""

    _mesh: FunctionMesh
    _streams: OpenStreams

    async def ExecuteFunction(
        self, request: pb.ExecuteFunctionRequest, context: Context
    ) -> pb.ExecuteFunctionResponse:
        """Calls a function and answers with its result."""
        if request.detach and not request.durable:
            raise invalid_argument("detach", "only durable executions go on by themselves")
        mutation = self._mutation_of(request)
        if first := await mutation.answered(pb.ExecuteFunctionResponse()):
            return await self._joined(first.execution.execution_id, request, mutation)
        plan = await self._plan(request)
        if (other := await self._claim(mutation, plan)) is not None:
            return await self._joined(other, request, mutation)
        async with _forgotten_when_lost(mutation):
            if request.durable:
                execution = await self._execute_durably(plan, request)
            else:
                execution = await self._mesh.executor.execute(plan)
        return pb.ExecuteFunctionResponse(execution=execution)

    async def StreamFunction(
        self, request: pb.StreamFunctionRequest, context: Context
    ) -> AsyncIterator[pb.StreamFunctionResponse]:
        """Calls a function and sends what it prints and reports on the way."""
        call = request.call
        mutation = self._mutation_of(call)
        async with self._streams.stream():
            first = await mutation.answered(pb.ExecuteFunctionResponse())
            other = first.execution.execution_id if first else None
            if other is None:
                plan = await self._plan(call)
                other = await self._claim(mutation, plan)
            if other is not None:
                joined = await self._joined(other, call, mutation)
                yield pb.StreamFunctionResponse(ended=joined.execution)
                return
            events: Events = asyncio.Queue()
            running = asyncio.create_task(self._run_streamed(plan, call, events))
            try:
                while (event := await events.get()) is not None:
                    yield event
                async with _forgotten_when_lost(mutation):
                    execution = await running
                yield pb.StreamFunctionResponse(ended=execution)
            finally:
                await end_tasks(running)

    async def _run_streamed(
        self, plan: Plan, call: pb.ExecuteFunctionRequest, events: Events
    ) -> pb.Execution:
        try:
            if call.durable:
                return await self._execute_durably(plan, call, events)
            return await self._mesh.executor.execute(plan, events.put_nowait)
        finally:
            events.put_nowait(None)

    async def _execute_durably(
        self, plan: Plan, request: pb.ExecuteFunctionRequest, events: Events | None = None
    ) -> pb.Execution:
        mesh, execution = self._mesh, plan.execution
        work = FunctionWork(
            execution_id=execution.execution_id,
            name=execution.function_name,
            # A version that is deleted may come again with other code.
            version=plan.stored.function.digest,
            input=request.input,
            limits=request.limits,
            retry_policy=request.retry_policy,
            caller=plan.caller,
            parent_task_id=request.parent_task_id,
        )
        await self._require_room(execution.owner)
        if request.detach and events is None:
            await mesh.durable.add(work, execution, waited_for=False)
            return execution
        async with mesh.durable.followed(execution.execution_id) as submission:
            await mesh.durable.add(work, execution, waited_for=True)
            async for event in submission.events():
                told = pb.StreamFunctionResponse()
                if events is not None and event.progress.Unpack(told):
                    events.put_nowait(told)
        record = await mesh.durable.settled(await mesh.history.get(execution.execution_id))
        return record.execution

    async def _require_room(self, owner: str) -> None:
        mesh = self._mesh
        count = await mesh.history.count_open(owner)
        if count >= mesh.max_open_executions:
            raise resource_exhausted(
                f"{count} durable executions of yours have not ended. Wait for some, or cancel them.",
                retry_after=5.0,
                reason="TOO_MANY_EXECUTIONS",
                subject=f"identity:{owner}",
                quota="max_open_executions",
            )

    async def GetExecution(
        self, request: pb.GetExecutionRequest, context: Context
    ) -> pb.GetExecutionResponse:
        """Describes an execution."""
        record = await self._own(request.execution_id)
        return pb.GetExecutionResponse(execution=record.execution)

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: Context
    ) -> pb.ListExecutionsResponse:
        """Lists executions, the newest first."""
        identity = current_identity()

        async def read(place: str) -> Batch[pb.Execution]:
            return await self._mesh.history.page(
                place,
                owner="" if may_change(identity) else identity.id,
                name=request.function_name,
                version=request.function_version,
                states=list(request.states),
            )

        async def shown(execution: pb.Execution) -> pb.Execution:
            return execution

        executions, token = await collect(
            request, read, lambda execution: execution.execution_id, shown
        )
        return pb.ListExecutionsResponse(executions=executions, next_page_token=token)

    async def CancelExecution(
        self, request: pb.CancelExecutionRequest, context: Context
    ) -> pb.CancelExecutionResponse:
        """Stops an execution; one that has ended stays as it is."""
        record = await self._own(request.execution_id)
        if not record.ended and record.durable:
            record = await self._mesh.durable.cancel(record)
        elif not record.ended:
            await self._mesh.cancel_everywhere(request.execution_id)
            record = await self._end_of(request.execution_id, _CANCEL_SECONDS)
        return pb.CancelExecutionResponse(execution=record.execution)

    # How they are made and found again

    async def _plan(self, request: pb.ExecuteFunctionRequest) -> Plan:
        mesh = self._mesh
        identity, others = mesh.delegation(
            current_identity(), request.on_behalf_of, ("function_execute",)
        )
        stored = await mesh.cache.seen(request.name, request.version, identity)
        if not all(stored.seen_by(other) for other in others):
            raise no_such_function(request.name, request.version)
        mesh.checks.engine(stored.function)
        arguments = await checked_input(stored.function, request.input, "input")
        mesh.executor.require_room(identity.id)
        return Plan(
            stored,
            arguments,
            request.limits,
            new_execution(time_id(), stored, identity.id),
            caller_of(identity),
            durable=request.durable,
            host=partial(HostCalls, mesh.deputy, caller_of(identity), request.parent_task_id),
        )

    def _mutation_of(self, request: pb.ExecuteFunctionRequest) -> Mutation:
        mesh = self._mesh
        identity = current_identity().id
        return Mutation(mesh.redis, mesh.keys, "ExecuteFunction", identity, request.request_id)

    async def _claim(self, mutation: Mutation, plan: Plan) -> str | None:
        """Lets the request id stand for this execution; returns another for which it stands."""
        if not mutation.name:
            return None
        mine = pb.ExecuteFunctionResponse(
            execution=pb.Execution(execution_id=plan.execution.execution_id)
        )
        counts = await mutation.settle(mine)
        if counts.execution.execution_id == plan.execution.execution_id:
            return None
        return counts.execution.execution_id

    async def _joined(
        self, execution_id: str, request: pb.ExecuteFunctionRequest, mutation: Mutation
    ) -> pb.ExecuteFunctionResponse:
        """The answer to a repeated request: the first one's, when it has come to its end.

        Raises MeshError UNAVAILABLE (SERVER_LOST) when there will be none: then the next repetition
        is the first.
        """
        async with _forgotten_when_lost(mutation):
            return await self._first_answer(execution_id, request)

    async def _first_answer(
        self, execution_id: str, request: pb.ExecuteFunctionRequest
    ) -> pb.ExecuteFunctionResponse:
        try:
            record = await self._own(execution_id)
        except MeshError as error:
            if error.reason != "EXECUTION_NOT_FOUND":
                raise
            raise _server_lost() from error
        if not (request.detach or record.ended):
            stored = await self._mesh.cache.seen(
                record.execution.function_name,
                record.execution.function_version,
                current_identity(),
            )
            limits = tightest(stored.function.limits, request.limits)
            record = await self._end_of(execution_id, limits.timeout + _MARGIN_SECONDS)
            if not (record.ended or record.durable):
                raise _server_lost()
        return pb.ExecuteFunctionResponse(execution=record.execution)

    async def _own(self, execution_id: str) -> Record:
        identity: Identity = current_identity()
        record = await self._mesh.durable.settled(await self._mesh.history.get(execution_id))
        if not may_change(identity, record.execution.owner):
            raise no_such_execution(execution_id)
        return record

    async def _end_of(self, execution_id: str, seconds: float) -> Record:
        """How an execution ended, or how it stands after some time."""
        deadline = time.monotonic() + seconds
        while True:
            record = await self._mesh.durable.settled(await self._mesh.history.get(execution_id))
            if record.ended or time.monotonic() > deadline:
                return record
            await asyncio.sleep(_LOOK_SECONDS)
