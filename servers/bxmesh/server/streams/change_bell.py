"""Telling those who follow something that it has changed, on whichever server."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

from redis.asyncio import Redis

from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.ending import Background
from bxmesh.server.streams.keys import PREFIX
from bxmesh.server.streams.listening import listen

__all__ = ["ChangeBell"]


class ChangeBell(Background):
    """Rings for everybody who waits, on all servers; an async context manager.

    What is rung may be lost: whoever waits looks now and then without it.
    """

    def __init__(self, redis: Redis, subject: str) -> None:
        self._redis = redis
        self._channel = f"{PREFIX}:{subject}:changed"
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def ring(self, what: str = "") -> None:
        """Rings. Raises MeshError UNAVAILABLE without Redis."""
        with redis_errors():
            await self._redis.publish(self._channel, what)

    @contextlib.contextmanager
    def heard(self, what: str = "") -> Iterator[asyncio.Event]:
        """An event that is set whenever it rings for the same, for its user to clear."""
        event = asyncio.Event()
        self._waiting[what].add(event)
        try:
            yield event
        finally:
            self._waiting[what].discard(event)
            if not self._waiting[what]:
                del self._waiting[what]

    def _hear(self, channel: str, data: bytes) -> None:
        for event in self._waiting.get(data.decode(errors="replace"), ()):
            event.set()

    def _wake_all(self) -> None:
        # What was rung before the subscription was not heard.
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def _run(self) -> None:
        await listen(self._redis, (self._channel,), self._hear, self._wake_all)
