"""The components that every server has."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import select

from bxmesh.registry.v1.agent_pb2 import AGENT_STATUS_ACTIVE, Agent
from bxmesh.server.conversations.archive import Archive
from bxmesh.server.database import Database
from bxmesh.server.database.tables import DEFINITIONS
from bxmesh.server.definitions.store import RUNNING
from bxmesh.server.doctor.findings import fail, ok, warn
from bxmesh.server.doctor.memory import check_memory, memory
from bxmesh.server.doctor.redis import judge_memory_and_durability, judge_server
from bxmesh.server.doctor.storage import check_disk
from bxmesh.server.errors import unavailable
from bxmesh.server.geometry.agent.capabilities import CAPABILITIES
from bxmesh.server.health_report.meaning import meaning_checks
from bxmesh.server.health_report.models import model_providers
from bxmesh.server.health_report.report import Check, Examined
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.security.circuit_breakers import ALL_CLOSED, CircuitBreakers
from bxmesh.server.settings import Settings
from bxmesh.server.streams import CONNECTION_ERRORS, WorkQueue
from bxmesh.server.streams.connection import redis_errors

__all__ = ["checks_of"]

_FULL = 0.8
# A server that is busy with something else is not a slow Redis.
_SLOW_MS = 500.0
_FIGURES = ("used_memory", "maxmemory", "connected_clients", "uptime_in_seconds")


def checks_of(
    settings: Settings,
    redis: Redis,
    database: Database | None,
    queue: WorkQueue,
    archive: Archive | None = None,
    circuits: CircuitBreakers = ALL_CLOSED,
) -> dict[str, Check]:
    """Returns the checks of what a server with these settings works with, by component."""
    expected = settings.workers if "workers" in settings.services else 0
    checks = {
        "disk": _disk(settings),
        "geometry_workers": _workers(redis, queue, expected),
        "memory": _memory(settings),
        "redis": _redis(redis),
    }
    if database is not None:
        checks["database"] = _database(database)
        checks["hosts"] = _hosts(redis, database)
        checks["model_providers"] = model_providers(redis, database, circuits)
    if archive is not None:
        checks |= meaning_checks(settings, archive)
    return checks


def _redis(redis: Redis) -> Check:
    """Whether Redis answers, and keeps what it is given."""

    async def check() -> Examined:
        try:
            began = time.perf_counter()
            await redis.ping()
            took = time.perf_counter() - began
            info: dict[str, Any] = await redis.info()
        except (*CONNECTION_ERRORS, RedisError) as error:
            message = f"does not answer: {type(error).__name__}"
            return Examined([fail("redis", message, "Start it, or look at its log.")])
        findings = [judge_server(info, "", took, _SLOW_MS), *judge_memory_and_durability(info)]
        return Examined(findings, {name: str(info[name]) for name in _FIGURES if name in info})

    return check


def _database(database: Database) -> Check:
    """Whether the database answers."""

    async def check() -> Examined:
        details = {"dialect": database.dialect}
        if await database.answers():
            return Examined([ok("database", f"{database.dialect} answers")], details)
        remedy = "Start it, or look at its log; functions, chains and definitions need it."
        return Examined([fail("database", f"{database.dialect} does not answer", remedy)], details)

    return check


def _workers(redis: Redis, queue: WorkQueue, expected: int) -> Check:
    """Whether there are as many geometry workers as this server starts, and room in their queue."""
    agents = LiveAgents(redis)

    async def check() -> Examined:
        with redis_errors():
            live, _ = await agents.list(CAPABILITIES)
        waiting = (await queue.stats()).waiting
        details = {
            "workers": str(len(live)),
            "expected": str(expected),
            "active": str(sum(agent.status == AGENT_STATUS_ACTIVE for agent in live)),
            "mean_load": f"{_mean_load(live):.2f}",
            "waiting": str(waiting),
        }
        message = f"{len(live)} live, {waiting} calculations wait"
        remedy = "Look at the server's log, or start more: bxmesh serve --services workers."
        if not live:
            return Examined([fail("geometry_workers", message, remedy)], details)
        if len(live) < expected:
            short = f"{message}; this server starts {expected}"
            return Examined([warn("geometry_workers", short, remedy)], details)
        if waiting > _FULL * queue.options.max_depth:
            full = f"{message}; the queue takes {queue.options.max_depth}"
            return Examined([warn("geometry_workers", full, remedy)], details)
        return Examined([ok("geometry_workers", message)], details)

    return check


def _hosts(redis: Redis, database: Database) -> Check:
    """Whether every active definition has an agent, in some host."""
    agents = LiveAgents(redis)
    names = select(DEFINITIONS.c.definition_id).where(
        DEFINITIONS.c.deleted == 0, DEFINITIONS.c.state == RUNNING[0]
    )

    async def check() -> Examined:
        wanted = set(await database.read(lambda connection: connection.scalars(names).all()))
        with redis_errors():
            live = [agent for agent in (await agents.snapshot()).agents if agent.definition_id]
        missing = sorted(wanted - {agent.definition_id for agent in live})
        details = {
            "agents": str(len(live)),
            "definitions": str(len(wanted)),
            "definitions_without_agent": str(len(missing)),
        }
        message = f"{len(live)} agents of {len(wanted)} active definitions"
        if not missing:
            return Examined([ok("hosts", message)], details)
        short = f"{message}; no agent runs {', '.join(missing[:5])}"
        remedy = "Start a host: bxmesh host."
        return Examined([warn("hosts", short, remedy)], details)

    return check


def _disk(settings: Settings) -> Check:
    """Whether there is room in the state directory."""

    def look() -> Examined:
        usage = shutil.disk_usage(settings.state_dir)
        details = {"free_bytes": str(usage.free), "total_bytes": str(usage.total)}
        return Examined(check_disk(settings), details)

    async def check() -> Examined:
        # A file system on the network may hang.
        return await asyncio.to_thread(look)

    return check


def _memory(settings: Settings) -> Check:
    """Whether there is memory left for this server and its workers."""

    def look() -> Examined:
        try:
            found = memory()
        except (OSError, KeyError, ValueError) as error:
            raise unavailable("this system does not tell") from error
        details = {
            "available_bytes": str(found.available),
            "total_bytes": str(found.total),
            "process_bytes": str(found.process),
        }
        return Examined(check_memory(settings), details)

    async def check() -> Examined:
        return await asyncio.to_thread(look)

    return check


def _mean_load(agents: Sequence[Agent]) -> float:
    return sum(agent.current_load for agent in agents) / len(agents) if agents else 0.0
