"""ChainService: runs of chains, for callers."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from redis.asyncio import Redis

from bxmesh.agent.v1 import chain_run_pb2 as pb
from bxmesh.agent.v1.chain_work_pb2 import ChainWork
from bxmesh.registry.v1 import agent_definition_pb2, chain_pb2
from bxmesh.server import telemetry
from bxmesh.server.chains.keeper import ChainKeeper
from bxmesh.server.chains.runner import ChainRunner, run_cancelled
from bxmesh.server.chains.store import ENDED, ChainStore, RunEndedError, no_such_run
from bxmesh.server.database import Database
from bxmesh.server.definitions.checks import MOST_DEPTH, check_chain
from bxmesh.server.definitions.functions import Functions
from bxmesh.server.definitions.store import DefinitionStore
from bxmesh.server.errors import (
    MeshError,
    failed_precondition,
    invalid_argument,
    resource_exhausted,
)
from bxmesh.server.interceptors import current_identity
from bxmesh.server.json_schemas import SchemaError, find_misfit
from bxmesh.server.json_values import NotJsonError, json_of, value_of
from bxmesh.server.mutations import Mutation
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.pages import Batch, collect
from bxmesh.server.security.delegation import Delegation
from bxmesh.server.security.on_behalf import Deputy, caller_of
from bxmesh.server.security.ownership import may_change
from bxmesh.server.settings import Settings
from bxmesh.server.streams import QueueOptions, Ticket, Worker, WorkerOptions, WorkQueue
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.time_ids import time_id

__all__ = ["ChainService", "chain_queue_options", "chain_service"]

Context = grpc.aio.ServicerContext[Any, Any]

_KIND = "chain.run"
# A run that waits for its steps costs little.
_RUNS_AT_A_TIME = 1000
_MOST_ATTEMPTS = 100
_OUTCOME_SECONDS = 86400.0
_LOOK_SECONDS = 2.0


def chain_queue_options(settings: Settings) -> QueueOptions:
    """The queue's options; the servers of one mesh must agree on them."""
    return QueueOptions(
        "chains",
        max_depth=settings.queue_depth,
        lease=settings.work_lease,
        # An attempt only ends without the run when a server or what it needs is lost.
        max_attempts=_MOST_ATTEMPTS,
        outcome_lifetime=_OUTCOME_SECONDS,
        seals=settings.seals,
    )


@asynccontextmanager
async def chain_service(
    settings: Settings,
    redis: Redis,
    database: Database,
    functions: Functions,
    queue: WorkQueue,
    deputy: Deputy,
    delegation: Delegation,
) -> AsyncIterator[ChainService]:
    """A service with all that it needs, within a block."""
    async with AsyncExitStack() as stack:
        store = ChainStore(database, settings.kept_runs)
        await stack.enter_async_context(store.retention)
        bell = await stack.enter_async_context(ChangeBell(redis, "chains"))
        await stack.enter_async_context(ChainKeeper(store, queue))
        runner = ChainRunner(store, deputy, bell)
        worker = Worker(
            redis,
            queue.options,
            WorkerOptions(
                f"chains-{uuid.uuid4().hex[:12]}",
                concurrency=_RUNS_AT_A_TIME,
                drain_grace=settings.drain_grace,
                handlers={_KIND: runner.execute},
            ),
        )
        await stack.enter_async_context(worker.running())
        yield ChainService(
            ChainMesh(
                redis,
                queue,
                store,
                DefinitionStore(database, settings.definition_holdings),
                functions,
                bell,
                delegation,
                settings.max_open_runs,
            )
        )


@dataclass(frozen=True)
class ChainMesh:
    """What the RPCs work with."""

    redis: Redis
    queue: WorkQueue
    store: ChainStore
    definitions: DefinitionStore
    functions: Functions
    bell: ChangeBell
    delegation: Delegation
    max_open_runs: int
    """Of one identity."""


class ChainService:
    """Start, get, list, cancel, watch."""

    def __init__(self, mesh: ChainMesh) -> None:
        self._mesh = mesh
        self._streams = OpenStreams()

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()

    async def StartChain(
        self, request: pb.StartChainRequest, context: Context
    ) -> pb.StartChainResponse:
        """Begins a run; it is durable when this returns."""
        mesh = self._mesh
        identity, _ = mesh.delegation(current_identity(), request.on_behalf_of, ("task_assign",))
        mutation = self._mutation("StartChain", request.request_id)
        if answer := await mutation.answered(pb.StartChainResponse()):
            return pb.StartChainResponse(run=await self._own(answer.run.run_id))
        run = pb.ChainRun(
            run_id=time_id(),
            state=pb.RUN_STATE_PENDING,
            input=request.input,
            owner=identity.id,
            revision=1,
            trace_id=telemetry.current_trace_id(),
        )
        run.create_time.GetCurrentTime()
        if request.HasField("chain"):
            run.chain.CopyFrom(request.chain)
        else:
            definition = await self._active(request.definition_id)
            run.chain.CopyFrom(definition.chain)
            run.definition_id = definition.definition_id
            run.definition_version = definition.version
        open_runs = await mesh.store.count_open(identity.id)
        if open_runs >= mesh.max_open_runs:
            raise resource_exhausted(
                f"{open_runs} runs of yours have not ended. Wait for some, or cancel them.",
                retry_after=5.0,
                reason="TOO_MANY_RUNS",
                subject=f"identity:{identity.id}",
                quota="max_open_runs",
            )
        await check_chain(run.chain, mesh.functions, identity, max_depth=MOST_DEPTH)
        await asyncio.to_thread(_check_input, run.chain, request)
        run.steps.extend(
            pb.StepRun(step_id=step.step_id, state=pb.RUN_STATE_PENDING) for step in run.chain.steps
        )
        if mutation.name:
            mine = pb.StartChainResponse(run=pb.ChainRun(run_id=run.run_id))
            counts = await mutation.settle(mine)
            if counts.run.run_id != run.run_id:
                return pb.StartChainResponse(run=await self._own(counts.run.run_id))
        await mesh.store.create(run)
        try:
            await mesh.queue.enqueue(
                _KIND,
                ChainWork(
                    run_id=run.run_id,
                    caller=caller_of(identity),
                    parent_task_id=request.parent_task_id,
                    on_behalf_of=request.on_behalf_of,
                ),
                item_id=run.run_id,
                # So that its end is remembered.
                request_id=run.run_id,
                identity=identity.id,
            )
        except MeshError:
            await mesh.store.remove(run.run_id)
            raise
        return pb.StartChainResponse(run=run)

    async def GetChain(self, request: pb.GetChainRequest, context: Context) -> pb.GetChainResponse:
        """Describes a run."""
        return pb.GetChainResponse(run=await self._own(request.run_id))

    async def ListChains(
        self, request: pb.ListChainsRequest, context: Context
    ) -> pb.ListChainsResponse:
        """Lists runs, the newest first."""
        identity = current_identity()

        async def read(place: str) -> Batch[pb.ChainRun]:
            return await self._mesh.store.page(
                place,
                owner="" if may_change(identity) else identity.id,
                definition_id=request.definition_id,
                states=list(request.states),
            )

        async def shown(run: pb.ChainRun) -> pb.ChainRun:
            run.ClearField("input")
            run.ClearField("output")
            return run

        runs, token = await collect(request, read, lambda run: run.run_id, shown)
        return pb.ListChainsResponse(runs=runs, next_page_token=token)

    async def CancelChain(
        self, request: pb.CancelChainRequest, context: Context
    ) -> pb.CancelChainResponse:
        """Cancels a run; one that has ended stays as it is."""
        mesh = self._mesh
        run = await self._own(request.run_id)
        if run.state not in ENDED:
            changed = {}
            for place, step in enumerate(run.steps):
                if step.state not in ENDED:
                    running = step.state == pb.RUN_STATE_RUNNING
                    step.state = pb.RUN_STATE_CANCELLED if running else pb.RUN_STATE_SKIPPED
                    step.end_time.GetCurrentTime()
                    changed[place] = step
            run.state = pb.RUN_STATE_CANCELLED
            run.error.CopyFrom(run_cancelled().to_status())
            run.end_time.GetCurrentTime()
            with contextlib.suppress(RunEndedError):
                await mesh.store.save(run, changed, whole=True)
            await mesh.bell.ring(run.run_id)
            await mesh.queue.cancel(Ticket(run.run_id, run.run_id, "", "", repeated=False))
            run = await self._own(request.run_id)
        return pb.CancelChainResponse(run=run)

    async def WatchChain(
        self, request: pb.WatchChainRequest, context: Context
    ) -> AsyncIterator[pb.WatchChainResponse]:
        """Follows a run to its end."""
        mesh = self._mesh
        with mesh.bell.heard(request.run_id) as rung:
            run = await self._own(request.run_id)
            async with self._streams.stream():
                after = request.after_revision
                if not after:
                    after = run.revision
                    yield pb.WatchChainResponse(revision=after, run=run)
                    if run.state in ENDED:
                        return
                while True:
                    rung.clear()
                    changes = await mesh.store.changed(request.run_id, after)
                    for revision, step in changes.steps:
                        yield pb.WatchChainResponse(revision=revision, step=step)
                    after = max(after, changes.revision)
                    if changes.ended:
                        run = await mesh.store.get(request.run_id)
                        yield pb.WatchChainResponse(revision=run.revision, run=run)
                        return
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await rung.wait()

    async def _own(self, run_id: str) -> pb.ChainRun:
        run = await self._mesh.store.get(run_id)
        if not may_change(current_identity(), run.owner):
            raise no_such_run(run_id)
        return run

    async def _active(self, name: str) -> agent_definition_pb2.AgentDefinition:
        store = self._mesh.definitions
        definition = await store.get(name)
        if definition.state != agent_definition_pb2.DEFINITION_STATE_ACTIVE:
            raise failed_precondition(
                f"{name} is not active. Activate it first.",
                reason="DEFINITION_NOT_ACTIVE",
                subject=name,
            )
        definition = await store.get(name, definition.active_version)
        if not definition.HasField("chain"):
            raise failed_precondition(
                f"{name} has no chain.", reason="DEFINITION_HAS_NO_CHAIN", subject=name
            )
        return definition

    def _mutation(self, method: str, request_id: str) -> Mutation:
        mesh = self._mesh
        return Mutation(mesh.redis, mesh.queue.keys, method, current_identity().id, request_id)


def _check_input(chain: chain_pb2.Chain, request: pb.StartChainRequest) -> None:
    try:
        value_of(json_of(request.input))
    except NotJsonError as error:
        raise invalid_argument("input", str(error)) from None
    if chain.input_schema.WhichOneof("kind") != "json_schema":
        return
    try:
        misfit = find_misfit(json_of(request.input), chain.input_schema, request.ByteSize())
    except SchemaError as error:
        raise invalid_argument(
            "input", f"cannot be checked: the schema fails ({error})", reason="SCHEMA_MISMATCH"
        ) from None
    if misfit:
        raise invalid_argument(
            f"input{misfit.path}", misfit.problem[:200], reason="SCHEMA_MISMATCH"
        )
