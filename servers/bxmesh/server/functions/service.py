"""FunctionService: stored functions and their executions, for callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from redis.asyncio import Redis

from bxmesh.agent.v1 import function_pb2 as pb
from bxmesh.server.database import Database
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument
from bxmesh.server.functions.cache import FunctionCache
from bxmesh.server.functions.checking import Checks
from bxmesh.server.functions.container import find_container
from bxmesh.server.functions.engine import Engine
from bxmesh.server.functions.execution_rpcs import ExecutionRpcs
from bxmesh.server.functions.executor import Executor
from bxmesh.server.functions.history import History
from bxmesh.server.functions.host_functions import HOST_FUNCTIONS
from bxmesh.server.functions.keeper import ExecutionKeeper
from bxmesh.server.functions.mesh import FunctionMesh, Users
from bxmesh.server.functions.places import Places
from bxmesh.server.functions.sandbox import sandbox
from bxmesh.server.functions.store import FunctionStore, Stored, no_such_function
from bxmesh.server.functions.versions import (
    LATEST,
    digest_of,
    is_version,
    require_sortable,
    sort_key,
)
from bxmesh.server.functions.work import durable_executions
from bxmesh.server.interceptors import current_identity
from bxmesh.server.mutations import Mutation
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.pages import Batch, collect, token_invalid, token_place
from bxmesh.server.security.delegation import Delegation
from bxmesh.server.security.on_behalf import Deputy
from bxmesh.server.security.ownership import shared_team
from bxmesh.server.settings import Settings
from bxmesh.server.streams import WorkClient, WorkQueue
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.listening import listen

__all__ = ["FunctionService", "function_service"]

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_ENTRY = "main"


@asynccontextmanager
async def function_service(
    settings: Settings,
    redis: Redis,
    database: Database,
    cache: FunctionCache,
    queue: WorkQueue,
    deputy: Deputy,
    users: Users,
    delegation: Delegation,
) -> AsyncIterator[FunctionService]:
    """A service with all that it needs, within a block."""
    async with AsyncExitStack() as stack:
        workers, sessions = settings.function_workers, settings.function_sessions
        places = Places(workers, sessions)
        box = await stack.enter_async_context(sandbox(workers, sessions))
        engines: dict[pb.FunctionEngine.ValueType, Engine] = {pb.FUNCTION_ENGINE_SANDBOX: box}
        if container := await asyncio.to_thread(find_container):
            engines[pb.FUNCTION_ENGINE_CONTAINER] = container
        checks = Checks(engines, HOST_FUNCTIONS, places)
        history = await stack.enter_async_context(History(database, settings.kept_executions))
        await stack.enter_async_context(history.retention)
        executor = Executor(checks, history, places, settings.function_queue)
        store = FunctionStore(database, settings.function_holdings)
        client = await stack.enter_async_context(WorkClient(redis))
        durable = await stack.enter_async_context(
            durable_executions(queue, client, cache, executor, deputy, sessions)
        )
        await stack.enter_async_context(ExecutionKeeper(history, durable.settled))
        mesh = FunctionMesh(
            redis,
            queue.keys,
            checks,
            store,
            cache,
            history,
            executor,
            durable,
            deputy,
            users,
            delegation,
            settings.max_open_executions,
        )
        listener = asyncio.create_task(
            listen(redis, (mesh.cancellations,), lambda channel, data: mesh.hear(data))
        )
        stack.push_async_callback(end_tasks, listener)
        yield FunctionService(mesh)


class FunctionService(ExecutionRpcs):
    """All RPCs of the function service."""

    def __init__(self, mesh: FunctionMesh) -> None:
        self._mesh = mesh
        self._streams = OpenStreams()

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()

    async def CreateFunction(
        self, request: pb.CreateFunctionRequest, context: Context
    ) -> pb.CreateFunctionResponse:
        """Checks and stores a function."""
        identity = current_identity()
        mutation = self._mutation("CreateFunction", request.request_id)
        if answer := await mutation.answered(pb.CreateFunctionResponse()):
            return pb.CreateFunctionResponse(
                function=await self._again(answer.function), existed=answer.existed
            )
        for index, alias in enumerate(request.aliases):
            _require_alias(f"aliases[{index}]", alias)
        if request.function.version:
            require_sortable(request.function.version, "function.version")
        function = pb.Function()
        function.CopyFrom(request.function)
        function.entry_point = function.entry_point or _DEFAULT_ENTRY
        function.ClearField("aliases")
        function.digest = digest_of(function)
        await self._mesh.checks.check(function, identity.id)
        stored, existed = await self._mesh.store.create(
            function,
            identity,
            shared_team(identity, function.visibility),
            request.aliases,
            only_checked=request.validate_only,
        )
        if request.validate_only:
            return pb.CreateFunctionResponse(function=function, existed=existed)
        await self._mesh.cache.changed()
        counts = await mutation.settle(
            pb.CreateFunctionResponse(function=_named(stored.function), existed=existed)
        )
        return pb.CreateFunctionResponse(
            function=await self._again(counts.function, stored), existed=counts.existed
        )

    async def UpdateFunctionAlias(
        self, request: pb.UpdateFunctionAliasRequest, context: Context
    ) -> pb.UpdateFunctionAliasResponse:
        """Moves an alias."""
        mutation = self._mutation("UpdateFunctionAlias", request.request_id)
        if answer := await mutation.answered(pb.UpdateFunctionAliasResponse()):
            return pb.UpdateFunctionAliasResponse(function=await self._again(answer.function))
        _require_alias("alias", request.alias)
        if request.alias == LATEST:
            raise invalid_argument("alias", f"{LATEST} always means what was stored last")
        identity = current_identity()
        await self._seen(request.name, request.version or request.alias)
        stored = await self._mesh.store.point(
            request.name, request.alias, request.version, identity
        )
        await self._mesh.cache.changed()
        counts = await mutation.settle(
            pb.UpdateFunctionAliasResponse(function=_named(stored.function))
        )
        return pb.UpdateFunctionAliasResponse(function=await self._again(counts.function, stored))

    async def GetFunction(
        self, request: pb.GetFunctionRequest, context: Context
    ) -> pb.GetFunctionResponse:
        """Returns a function with its code."""
        stored = await self._seen(request.name, request.version)
        return pb.GetFunctionResponse(function=stored.function)

    async def ListFunctions(
        self, request: pb.ListFunctionsRequest, context: Context
    ) -> pb.ListFunctionsResponse:
        """Lists functions, or the versions of one."""
        identity, store = current_identity(), self._mesh.store
        name = request.name
        if name and request.page_token and not _is_place(token_place(request)):
            raise token_invalid()

        async def read(place: str) -> Batch[Stored]:
            if not name:
                return await store.latest(identity, place)
            found = await store.versions(identity, name, place)
            if not (place or found.rows):
                raise no_such_function(name, "")
            return found

        async def shown(stored: Stored) -> pb.Function | None:
            labels = stored.function.labels
            if any(labels.get(key) != value for key, value in request.labels.items()):
                return None
            return _without_code(stored.function)

        functions, token = await collect(
            request,
            read,
            lambda stored: stored.function.version if name else stored.function.name,
            shown,
        )
        return pb.ListFunctionsResponse(functions=functions, next_page_token=token)

    async def DeleteFunction(
        self, request: pb.DeleteFunctionRequest, context: Context
    ) -> pb.DeleteFunctionResponse:
        """Deletes a function or one version."""
        mutation = self._mutation("DeleteFunction", request.request_id)
        if answer := await mutation.answered(pb.DeleteFunctionResponse()):
            return answer
        await self._require_unused(request)
        await self._mesh.store.delete(request.name, request.version, current_identity())
        await self._mesh.cache.changed()
        return await mutation.settle(pb.DeleteFunctionResponse())

    async def GetFunctionStats(
        self, request: pb.GetFunctionStatsRequest, context: Context
    ) -> pb.GetFunctionStatsResponse:
        """Counts executions and their times."""
        stored = await self._seen(request.name, request.version)
        version = stored.function.version if request.version else ""
        figures = await self._mesh.history.statistics(request.name, version)
        answer = pb.GetFunctionStatsResponse(
            executions=figures.executions,
            completed=figures.completed,
            limit_exceeded=figures.limited,
        )
        answer.duration_p50.FromMicroseconds(figures.p50)
        answer.duration_p95.FromMicroseconds(figures.p95)
        answer.duration_p99.FromMicroseconds(figures.p99)
        if figures.last:
            answer.last_time.FromMicroseconds(figures.last)
        return answer

    async def _require_unused(self, request: pb.DeleteFunctionRequest) -> None:
        """Of what belongs to others nobody is kept from deleting what is their own."""
        mesh, identity = self._mesh, current_identity()
        await self._seen(request.name, request.version)
        owner = await mesh.store.require_owner(request.name, identity)
        async for user, version in mesh.users(request.name, {owner, identity.id}):
            if request.version and not await self._means(request, version):
                continue
            raise failed_precondition(
                f"The active definition {user} uses {request.name}. Drain it first.",
                reason="FUNCTION_IN_USE",
                subject=user,
            )

    async def _means(self, request: pb.DeleteFunctionRequest, version: str) -> bool:
        """Whether a version, digest or alias is the version of the request."""
        try:
            used = await self._mesh.store.get(request.name, version)
        except MeshError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            # The alias was removed meanwhile.
            return False
        return used.function.version == request.version

    async def _seen(self, name: str, wanted: str) -> Stored:
        return await self._mesh.cache.seen(name, wanted, current_identity())

    async def _again(self, named: pb.Function, stored: Stored | None = None) -> pb.Function:
        """The function of an answer, of which only the name is remembered: code may be large."""
        if stored is None or stored.function.version != named.version:
            try:
                stored = await self._mesh.store.get(named.name, named.version)
            except MeshError as error:
                if error.reason != "FUNCTION_NOT_FOUND":
                    raise
                # It was deleted since.
                return named
        function = pb.Function()
        function.CopyFrom(stored.function)
        # They may mean others by now.
        del function.aliases[:]
        function.aliases.extend(named.aliases)
        return function

    def _mutation(self, method: str, request_id: str) -> Mutation:
        mesh = self._mesh
        return Mutation(mesh.redis, mesh.keys, method, current_identity().id, request_id)


def _is_place(text: str) -> bool:
    try:
        return is_version(text) and bool(sort_key(text))
    except ValueError:
        return False


def _named(function: pb.Function) -> pb.Function:
    return pb.Function(
        name=function.name,
        version=function.version,
        digest=function.digest,
        aliases=function.aliases,
    )


def _require_alias(field: str, alias: str) -> None:
    if is_version(alias) or alias.startswith("sha256"):
        raise invalid_argument(field, f"{alias} looks like a version; an alias is a word")


def _without_code(function: pb.Function) -> pb.Function:
    listed = pb.Function()
    listed.CopyFrom(function)
    listed.ClearField("code")
    return listed
