"""One server process put together: its services, interceptors, workers and dependencies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bxmesh.agent.v1 import (
    agent_service_pb2,
    chain_service_pb2,
    conversation_service_pb2,
    function_service_pb2,
)
from bxmesh.geometry.v1 import geometry_service_pb2
from bxmesh.health.v1 import health_service_pb2
from bxmesh.registry.v1 import registry_service_pb2
from bxmesh.security.v1 import security_service_pb2
from bxmesh.server.activity import OFF, Activity, recording
from bxmesh.server.agent.service import agent_service
from bxmesh.server.bundles import BundleStore
from bxmesh.server.chains.service import chain_queue_options, chain_service
from bxmesh.server.conversations.archive import Archive, MeaningOptions, open_archive
from bxmesh.server.conversations.events import EventLog
from bxmesh.server.conversations.service import conversation_service
from bxmesh.server.conversations.work import conversation_queue_options
from bxmesh.server.database import Database, open_database
from bxmesh.server.definitions.checks import users_of
from bxmesh.server.definitions.rpcs import DefinitionMesh
from bxmesh.server.definitions.store import DefinitionStore
from bxmesh.server.embedded_valkey import EmbeddedValkey
from bxmesh.server.errors import MeshError
from bxmesh.server.execution_limits import ExecutionLimits
from bxmesh.server.functions.cache import FunctionCache
from bxmesh.server.functions.queue import function_queue_options
from bxmesh.server.functions.service import function_service
from bxmesh.server.functions.store import FunctionStore
from bxmesh.server.functions.visible import VisibleFunctions
from bxmesh.server.geometry.agent.capabilities import CAPABILITIES
from bxmesh.server.geometry.mesh import GeometryMesh
from bxmesh.server.geometry.queue import queue_options
from bxmesh.server.geometry.routing import Router
from bxmesh.server.geometry.service import GeometryService
from bxmesh.server.geometry.session_record import SessionRecords
from bxmesh.server.health import Health
from bxmesh.server.health_report import HealthReport, HealthReportService
from bxmesh.server.health_report.checks import checks_of
from bxmesh.server.listening import add_port, remove_sockets_of_the_dead, write_server_file
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.occupation import Work
from bxmesh.server.reflection import add_reflection
from bxmesh.server.registry.with_definitions import FullRegistryService
from bxmesh.server.security import mesh_key
from bxmesh.server.security.admin_key import load_or_create
from bxmesh.server.security.belonging import belong
from bxmesh.server.security.delegation import by_directory
from bxmesh.server.security.guard import Guard, guard
from bxmesh.server.security.on_behalf import deputy
from bxmesh.server.security.outpost import outpost
from bxmesh.server.security.service import SecurityService
from bxmesh.server.settings import Settings
from bxmesh.server.streams import CONNECTION_ERRORS, QueueGauges, WorkClient, WorkQueue, connect
from bxmesh.server.streams.change_bell import ChangeBell
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.stopped import note_stopped
from bxmesh.server.tasks import TaskOptions, TaskStore
from bxmesh.server.tasks.running import running_tasks
from bxmesh.server.unimplemented import offer
from bxmesh.server.worker_pool import WorkerPool

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # By default a thousand calls at once are refused at random, without a word.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
)


class MeshServer:
    """A running server; `async with serve(settings) as server`."""

    def __init__(self, settings: Settings, redis: Redis, redis_url: str) -> None:
        self.settings = settings
        self.address = ""
        self.admin_address = ""
        self.redis = redis
        self.queue = WorkQueue(redis, queue_options(settings))
        self.workers = WorkerPool(settings, redis_url, self._bury_worker)
        self.activity: Activity = OFF
        self.database: Database | None = None
        self.archive: Archive | None = None
        self._agents = LiveAgents(redis)
        # Several servers may share a directory.
        self.inside = f"unix:{settings.run_dir}/inside-{os.getpid()}-{secrets.token_hex(4)}.sock"
        """Where this process reaches its own services, whatever it listens on."""

    async def stopped(self, worker_id: str, work: Work, error: MeshError) -> None:
        """Tells why a worker is stopped at a piece of work. Raises what Redis raises."""
        task_id, is_task, attempt = work.item_id.partition(":")
        if is_task:
            store = TaskStore(self.redis, TaskOptions(seals=self.settings.seals))
            await store.fail(task_id, int(attempt), worker_id, error.to_status())
        else:
            await note_stopped(self.redis, self.queue.keys, work.item_id, error)

    async def _bury_worker(self, worker_id: str) -> None:
        try:
            moved = await self.queue.retire(worker_id)
            await self._agents.leave(worker_id)
        except (*CONNECTION_ERRORS, RedisError) as error:
            _log.warning("the work of %s waits for its lease to end: %s", worker_id, error)
        else:
            _log.info("%d items of %s go to others", moved, worker_id)


@contextlib.asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[MeshServer]:
    """Starts everything that the settings ask for, and stops it in the opposite order."""
    settings.prepare_directories()
    async with contextlib.AsyncExitStack() as stack:
        redis_url = settings.redis_url.get_secret_value()
        if not redis_url:
            valkey = EmbeddedValkey(settings.state_dir / "valkey", settings.run_dir)
            stack.callback(valkey.stop)
            await asyncio.to_thread(valkey.start)
            _in_background(stack, valkey.supervise)
            redis_url = valkey.url
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        await _reach(redis, settings)
        await belong(redis, settings)
        server = MeshServer(settings, redis, redis_url)
        if set(settings.services) - {"workers"}:
            await _start_services(server, stack)
        if "workers" in settings.services and settings.workers:
            key = await asyncio.to_thread(mesh_key.load_or_create, settings.mesh_key_path)
            policies, events = await stack.enter_async_context(outpost(redis, key))
            server.workers.start()
            stack.push_async_callback(server.workers.stop)
            await stack.enter_async_context(
                ExecutionLimits(server.workers, settings.run_dir, policies, events, server.stopped)
            )
        yield server


async def _reach(redis: Redis, settings: Settings) -> None:
    try:
        version = (await redis.info("server"))["redis_version"]
    except (*CONNECTION_ERRORS, RedisError) as error:
        # The URL may hold a password, so only its host is shown.
        host = urlsplit(settings.redis_url.get_secret_value()).hostname or "the embedded Valkey"
        raise OSError(
            f"Redis cannot be used ({host}): {error}. `bxmesh doctor` says more."
        ) from error
    if int(str(version).split(".")[0]) < 7:
        raise OSError(f"Redis {version} is too old; 7.0 or newer is needed, or Valkey.")


async def _start_services(server: MeshServer, stack: contextlib.AsyncExitStack) -> None:
    settings, redis = server.settings, server.redis
    key = await asyncio.to_thread(load_or_create, settings.state_dir)
    server.activity = await stack.enter_async_context(recording(settings, redis, (server.queue,)))
    secured = await stack.enter_async_context(guard(settings, redis, key))
    interceptors = secured.interceptors(server.activity)
    grpc_server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
    names, drains = await _add_services(server, grpc_server, secured, stack)
    report = HealthReport(
        checks_of(settings, redis, server.database, server.queue, server.archive, secured.circuits)
    )
    stack.push_async_callback(report.close)
    names.append(offer(grpc_server, health_service_pb2, HealthReportService(report)))
    health = Health(settings, redis, names, server.database)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, grpc_server)
    names.append(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    if settings.reflection:
        add_reflection(grpc_server, names)
    admin = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
    channelz.add_channelz_servicer(admin)
    server.address = add_port(grpc_server, settings.listen, settings)
    server.admin_address = add_port(
        admin, settings.admin_listen or f"unix:{settings.run_dir}/admin.sock", settings
    )
    remove_sockets_of_the_dead(settings.run_dir)
    inside = Path(server.inside.removeprefix("unix:"))
    stack.callback(inside.unlink, missing_ok=True)
    add_port(grpc_server, server.inside, settings, inside=True)
    await grpc_server.start()
    await admin.start()
    await health.check()
    path = write_server_file(settings, server.address, server.admin_address)
    stack.callback(path.unlink, missing_ok=True)
    stack.push_async_callback(admin.stop, 1.0)
    stack.push_async_callback(grpc_server.stop, settings.drain_grace)
    stack.push_async_callback(health.drain)
    for drain in drains:
        stack.callback(drain)
    _in_background(stack, health.run)


async def _add_services(
    server: MeshServer,
    grpc_server: grpc.aio.Server,
    secured: Guard,
    stack: contextlib.AsyncExitStack,
) -> tuple[list[str], list[Callable[[], None]]]:
    """Adds what is offered; returns the names, and what to call before the server stops."""
    settings, redis = server.settings, server.redis
    names: list[str] = []
    drains: list[Callable[[], None]] = []
    tasks = await stack.enter_async_context(running_tasks(settings, redis, secured.circuits))
    if "geometry" in settings.services:
        store = BundleStore(
            settings.bundle_dir,
            timedelta(seconds=settings.bundle_lifetime),
            timedelta(seconds=settings.max_bundle_lifetime),
            settings.max_bundle_bytes,
        )
        mesh = GeometryMesh(
            settings,
            store,
            server.queue,
            await stack.enter_async_context(WorkClient(redis)),
            Router(LiveAgents(redis), CAPABILITIES[0]),
            SessionRecords(redis, settings.session_idle),
            tasks,
            secured.mesh.events,
            secured.quotas,
        )
        geometry = GeometryService(mesh)
        names.append(offer(grpc_server, geometry_service_pb2, geometry))
        drains.append(geometry.drain)
        _in_background(stack, lambda: _sweep(store))
        await stack.enter_async_context(QueueGauges(server.queue))
    work_queues = [server.queue]
    if {"registry", "functions", "agent"} & set(settings.services):
        database = await stack.enter_async_context(open_database(settings.database))
        server.database = database
        functions = await stack.enter_async_context(
            FunctionCache(redis, FunctionStore(database, settings.function_holdings))
        )
        visible = VisibleFunctions(functions)
        definitions = DefinitionStore(database, settings.definition_holdings)
        delegation = by_directory(secured.mesh.directory)
        inside = await stack.enter_async_context(deputy(secured.mesh.tokens, server.inside))
    if "registry" in settings.services:
        directory = secured.mesh.directory
        bell = await stack.enter_async_context(ChangeBell(redis, "definitions"))
        registry = await stack.enter_async_context(
            FullRegistryService(
                redis,
                DefinitionMesh(redis, definitions, visible, bell, LiveAgents(redis).any_of),
                is_identity=lambda name: directory.identity(name) is not None,
            )
        )
        names.append(offer(grpc_server, registry_service_pb2, registry))
        drains.append(registry.drain)
    if "functions" in settings.services:
        queue = WorkQueue(redis, function_queue_options(settings))
        work_queues.append(queue)
        function_rpcs = await stack.enter_async_context(
            function_service(
                settings,
                redis,
                database,
                functions,
                queue,
                inside,
                lambda name, owners: users_of(definitions, name, owners),
                delegation,
            )
        )
        names.append(offer(grpc_server, function_service_pb2, function_rpcs))
        drains.append(function_rpcs.drain)
    if "agent" in settings.services:
        queue = WorkQueue(redis, chain_queue_options(settings))
        work_queues.append(queue)
        chains = await stack.enter_async_context(
            chain_service(settings, redis, database, visible, queue, inside, delegation)
        )
        names.append(offer(grpc_server, chain_service_pb2, chains))
        drains.append(chains.drain)
        queue = WorkQueue(redis, conversation_queue_options(settings))
        work_queues.append(queue)
        log = EventLog(redis, settings.seals)
        archive = await stack.enter_async_context(
            open_archive(database, _meaning(settings), log.forget, secured.data)
        )
        server.archive = archive
        conversations = await stack.enter_async_context(
            conversation_service(
                settings,
                redis,
                archive,
                log,
                queue,
                inside,
                secured.data,
                secured.circuits,
            )
        )
        names.append(offer(grpc_server, conversation_service_pb2, conversations))
        drains.append(conversations.drain)
    if "agent" in settings.services:
        agents = await stack.enter_async_context(
            agent_service(
                settings,
                redis,
                tasks,
                tuple(work_queues),
                server.activity,
                secured.rules,
                secured.data,
                secured.signatures,
                secured.quotas,
                delegation,
            )
        )
        names.append(offer(grpc_server, agent_service_pb2, agents))
        drains.append(agents.drain)
    if "security" in settings.services:
        security = SecurityService(secured.mesh)
        names.append(offer(grpc_server, security_service_pb2, security))
        drains.append(security.drain)
    return names, drains


def _meaning(settings: Settings) -> MeaningOptions:
    return MeaningOptions(
        settings.state_dir / "vectors",
        settings.embedding_url,
        settings.embedding_model,
        settings.embedding_dimension,
        settings.embedding_key.get_secret_value(),
        settings.qdrant_url,
        settings.qdrant_key.get_secret_value(),
    )


async def _sweep(store: BundleStore) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            await asyncio.to_thread(store.sweep)
        except OSError as error:
            _log.warning("expired bundles could not be removed: %s", error)


def _in_background(
    stack: contextlib.AsyncExitStack, run: Callable[[], Coroutine[None, None, None]]
) -> None:
    stack.push_async_callback(end_tasks, asyncio.create_task(run()))
