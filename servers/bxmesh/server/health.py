"""Health per service and per dependency, as grpc.health.v1 tells it."""

from __future__ import annotations

import asyncio
import logging
import shutil

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bxmesh.server.database import Database
from bxmesh.server.geometry.agent.capabilities import CAPABILITIES
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.settings import Settings

_log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

REDIS = "dependency:redis"
WORKERS = "dependency:workers"
STORAGE = "dependency:storage"
DATABASE = "dependency:database"
_GEOMETRY = "bxmesh.geometry.v1.GeometryService"
_STORED = ("bxmesh.agent.v1.FunctionService", "bxmesh.agent.v1.ChainService")

_CHECK_SECONDS = 1.0
_LEAST_FREE_BYTES = 64 * 1024 * 1024


class Health:
    """Looks after the dependencies and says what serves.

    A service serves while Redis answers; GeometryService also needs a live worker and room on the disk,
    functions and chains the database. The whole ("") serves while all services do.
    """

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        services: list[str],
        database: Database | None = None,
    ) -> None:
        self.servicer = HealthServicer()
        self._settings = settings
        self._redis = redis
        self._database = database
        self._agents = LiveAgents(redis)
        self._services = services
        self._known: dict[str, bool] = {}

    async def run(self) -> None:
        """Checks once a second until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(_CHECK_SECONDS)

    async def check(self) -> None:
        """Checks once."""
        redis = await self._redis_answers()
        workers = redis and await self._workers_live()
        storage = self._has_room()
        await self._tell(REDIS, redis)
        await self._tell(WORKERS, workers)
        await self._tell(STORAGE, storage)
        database = self._database is None or await self._database.answers()
        if self._database is not None:
            await self._tell(DATABASE, database)
        serving = {
            name: redis
            and (name != _GEOMETRY or (workers and storage))
            and (name not in _STORED or database)
            for name in self._services
        }
        for name, is_serving in serving.items():
            await self._tell(name, is_serving)
        await self._tell("", all(serving.values()))

    async def drain(self) -> None:
        """Says NOT_SERVING for everything, for good."""
        await self.servicer.enter_graceful_shutdown()

    async def _tell(self, name: str, serving: bool) -> None:
        if self._known.get(name) is serving:
            return
        if name in self._known:
            _log.info("%s is %s", name or "the server", "serving" if serving else "not serving")
        self._known[name] = serving
        await self.servicer.set(name, SERVING if serving else NOT_SERVING)

    async def _redis_answers(self) -> bool:
        try:
            async with asyncio.timeout(2.0):
                return bool(await self._redis.ping())
        except (RedisError, OSError, TimeoutError):
            return False

    async def _workers_live(self) -> bool:
        try:
            agents, _ = await self._agents.list(CAPABILITIES)
        except (RedisError, OSError):
            return False
        return bool(agents)

    def _has_room(self) -> bool:
        try:
            return shutil.disk_usage(self._settings.state_dir).free > _LEAST_FREE_BYTES
        except OSError:
            return False
