"""The worker process put together: it registers, beats its heart, takes work, and serves sessions."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bxmesh.registry.v1 import agent_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.geometry.agent.calculations import Calculations
from bxmesh.server.geometry.agent.capabilities import (
    AGENT_TYPE,
    CAPABILITIES,
    OPEN_SESSION,
)
from bxmesh.server.geometry.agent.fences import fenced
from bxmesh.server.geometry.agent.session_server import SessionServer
from bxmesh.server.geometry.agent.tasks import GeometryTasks
from bxmesh.server.geometry.agent.warm_models import WarmModels
from bxmesh.server.geometry.engine import RestraintLibrary
from bxmesh.server.geometry.queue import queue_options
from bxmesh.server.geometry.session_record import SessionRecords
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.occupation import Occupation, occupation_path
from bxmesh.server.security.mesh_key import MeshKey
from bxmesh.server.settings import Settings
from bxmesh.server.streams import CONNECTION_ERRORS, Worker, WorkerOptions
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.mailbox_reader import MailboxReader
from bxmesh.server.streams.mailboxes import Mailboxes
from bxmesh.server.tasks import TaskOptions, TaskStore
from bxmesh.server.version import VERSION

_log = logging.getLogger(__name__)

# One calculates while the other fetches its inputs or stores its results.
_CONCURRENCY = 2
_MISSED_HEARTBEATS = 3


class GeometryWorker:
    """One worker; `run` returns after `stop`."""

    def __init__(self, worker_id: str, settings: Settings, redis: Redis, key: MeshKey) -> None:
        self._settings = settings
        self._redis = redis
        self._key = key
        store = BundleStore(
            settings.bundle_dir,
            timedelta(seconds=settings.bundle_lifetime),
            timedelta(seconds=settings.max_bundle_lifetime),
            settings.max_bundle_bytes,
        )
        library = RestraintLibrary(settings.cache_dir)
        # Calls and tasks each have theirs, so that long tasks keep no call from its turn.
        self._executor = ThreadPoolExecutor(2 * _CONCURRENCY, thread_name_prefix="engine")
        self.models = WarmModels(
            store,
            library,
            Occupation(occupation_path(settings.run_dir, worker_id)),
            most_models=settings.warm_models,
            most_bytes=settings.warm_bytes,
            most_atoms=settings.max_atoms,
            most_seconds=settings.max_share_seconds,
        )
        calculations = Calculations(
            worker_id,
            self.models,
            store,
            library,
            self._executor,
            result_lifetime=timedelta(seconds=settings.result_lifetime),
            max_batch_bytes=settings.max_batch_bytes,
        )
        self.sessions = SessionServer(
            worker_id,
            self.models,
            calculations,
            store,
            SessionRecords(redis, settings.session_idle),
            listen=settings.session_listen,
            run_dir=settings.run_dir,
            most_sessions=settings.sessions_per_worker,
            max_batch_bytes=settings.max_batch_bytes,
        )
        self._worker = Worker(
            redis,
            queue_options(settings),
            WorkerOptions(
                worker_id,
                concurrency=_CONCURRENCY,
                drain_grace=settings.drain_grace,
                handlers={**calculations.handlers, OPEN_SESSION: self.sessions.open_session},
            ),
        )
        self._bells = Bells(redis)
        self._tasks = GeometryTasks(
            worker_id,
            calculations,
            store,
            TaskStore(redis, TaskOptions(seals=settings.seals)),
            max_batch_bytes=settings.max_batch_bytes,
            result_lifetime=timedelta(seconds=settings.bundle_lifetime),
        )
        self._mailbox = MailboxReader(
            Mailboxes(redis, settings.mailbox_options),
            self._bells,
            worker_id,
            self._tasks.handle,
            concurrency=_CONCURRENCY,
        )
        self._agents = LiveAgents(redis)
        self._heartbeat = settings.heartbeat
        self._agent = agent_pb2.Agent(
            agent_id=worker_id,
            agent_type=AGENT_TYPE,
            version=VERSION,
            capabilities=[agent_pb2.Capability(name=name) for name in CAPABILITIES],
            max_concurrent_tasks=_CONCURRENCY,
            status=agent_pb2.AGENT_STATUS_ACTIVE,
            lease_ttl_seconds=round(_MISSED_HEARTBEATS * settings.heartbeat),
        )

    async def run(self) -> None:
        """Warms up, then works until it is stopped."""
        await asyncio.to_thread(self.models.warm_up)
        async with fenced(self._settings, self._redis, self._key):
            await self._work()

    async def _work(self) -> None:
        heart = asyncio.create_task(self._beat())
        try:
            async with self._bells, asyncio.TaskGroup() as group:
                group.create_task(self._worker.run())
                group.create_task(self._mailbox.run())
        finally:
            await end_tasks(heart)
            self.sessions.close()
            self._executor.shutdown(wait=False, cancel_futures=True)
            await self._leave()

    def stop(self) -> None:
        """Lets what was begun end, and takes no more."""
        self._agent.status = agent_pb2.AGENT_STATUS_DRAINING
        self._worker.stop()
        self._mailbox.stop()

    async def _beat(self) -> None:
        self._agent.register_time.GetCurrentTime()
        lease_id = ""
        told = None
        while True:
            self._describe()
            changed = self._agent.status != told
            told = self._agent.status
            try:
                lease = _MISSED_HEARTBEATS * self._heartbeat
                if (
                    not lease_id
                    or await self._agents.beat(self._agent, lease_id, lease, changed=changed)
                    is None
                ):
                    lease_id, _ = await self._agents.register(self._agent, lease)
            except (*CONNECTION_ERRORS, ResponseError) as error:
                _log.warning("no heartbeat: %s", error)
            await asyncio.sleep(self._heartbeat)

    def _describe(self) -> None:
        sessions = self.sessions.open_sessions
        self._agent.current_load = min(1.0, self._worker.load)
        self._agent.active_tasks = (
            round(self._worker.load * _CONCURRENCY) + self._mailbox.active + sessions
        )
        if self._agent.status != agent_pb2.AGENT_STATUS_DRAINING:
            busy = self._worker.load >= 1.0
            self._agent.status = (
                agent_pb2.AGENT_STATUS_BUSY if busy else agent_pb2.AGENT_STATUS_ACTIVE
            )
        self._agent.metadata["sessions"] = str(sessions)
        self._agent.metadata["warm_models"] = str(len(self.models))
        now = Timestamp()
        now.GetCurrentTime()
        self._agent.heartbeat_time.CopyFrom(now)

    async def _leave(self) -> None:
        try:
            await self._agents.leave(self._agent.agent_id)
        except (*CONNECTION_ERRORS, ResponseError):
            _log.info("Redis is away; the lease ends by itself")
