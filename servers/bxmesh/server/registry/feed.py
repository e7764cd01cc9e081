"""The one task of a registry server: it ends leases on time and tells watches of news."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from redis.asyncio import Redis

from bxmesh.server.live_agent_scripts import EVENTS
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.streams.connection import REDIS_ERRORS

__all__ = ["Feed"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 1.0
# Changes gather for so long before watches look, however many come.
_PAUSE_SECONDS = 0.1


class Feed:
    """Knows the newest revision between `start` and `stop`."""

    def __init__(self, redis: Redis, agents: LiveAgents) -> None:
        self._redis = redis
        self._agents = agents
        self._revision = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to end leases and to listen."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends it."""
        while self._task is not None and not self._task.done():
            # redis-py sends in asyncio.wait_for, which loses a cancellation on Python 3.11 when
            # the command has just been sent.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)

    async def _run(self) -> None:
        away = False
        while True:
            try:
                revision, next_end = await self._agents.expire()
                self._tell(revision)
                away = False
                await asyncio.sleep(_PAUSE_SECONDS)
                wait = _LONGEST_WAIT_SECONDS if next_end is None else next_end
                milliseconds = int(1000 * min(wait, _LONGEST_WAIT_SECONDS))
                await self._redis.xread(
                    {EVENTS: f"{revision}-0"}, count=1, block=max(1, milliseconds)
                )
            except REDIS_ERRORS as error:
                if not away:
                    _log.warning("leases are not looked after: %s", error)
                away = True
                await asyncio.sleep(_LONGEST_WAIT_SECONDS)

    async def wait(self, revision: int, seconds: float | None = None) -> None:
        """Returns when there is news after a revision, or after a time, a second at most."""
        if self._revision > revision:
            return
        with contextlib.suppress(TimeoutError):
            limit = _LONGEST_WAIT_SECONDS if seconds is None else seconds
            async with asyncio.timeout(min(limit, _LONGEST_WAIT_SECONDS)):
                await self._news.wait()

    def _tell(self, revision: int) -> None:
        if revision != self._revision:
            self._revision = revision
            self._news.set()
            self._news.clear()
