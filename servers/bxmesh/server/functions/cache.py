"""Functions as they were read a moment ago, as long as nothing has changed on any server."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

from redis.asyncio import Redis

from bxmesh.server.functions.store import FunctionStore, Stored, no_such_function
from bxmesh.server.security.identities import Identity
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.ending import Background
from bxmesh.server.streams.keys import PREFIX
from bxmesh.server.streams.listening import listen

__all__ = ["FunctionCache"]

_MOST_BYTES = 64 << 20
# What is announced may be lost.
_SECONDS = 5.0


class _Entry(NamedTuple):
    stored: Stored
    read: float


class FunctionCache(Background):
    """Answers from memory until a server announces a change, which others hear a moment later; an
    async context manager."""

    def __init__(self, redis: Redis, store: FunctionStore) -> None:
        self._redis = redis
        self._store = store
        self._channel = f"{PREFIX}:functions:changed"
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0
        self._changes = 0

    async def get(self, name: str, wanted: str) -> Stored:
        """Returns a function by version, digest or alias; raises MeshError NOT_FOUND, and UNAVAILABLE
        without the database."""
        key, now = (name, wanted), time.monotonic()
        entry = self._entries.get(key)
        if entry and now - entry.read < _SECONDS:
            self._entries.move_to_end(key)
            return entry.stored
        changes = self._changes
        stored = await self._store.get(name, wanted)
        # What was read while something changed may be what was.
        if changes == self._changes:
            self._drop(key)
            self._entries[key] = _Entry(stored, now)
            self._bytes += stored.function.ByteSize()
            while self._bytes > _MOST_BYTES:
                self._drop(next(iter(self._entries)))
        return stored

    async def seen(self, name: str, wanted: str, identity: Identity) -> Stored:
        """Returns a function that an identity sees; raises MeshError NOT_FOUND."""
        stored = await self.get(name, wanted)
        if not stored.seen_by(identity):
            raise no_such_function(name, wanted)
        return stored

    def _drop(self, key: tuple[str, str]) -> None:
        if entry := self._entries.pop(key, None):
            self._bytes -= entry.stored.function.ByteSize()

    async def changed(self) -> None:
        """Tells all servers that something is not what it was. To be called after a change, before
        its caller hears of it."""
        self._forget()
        with redis_errors():
            await self._redis.publish(self._channel, "")

    def _forget(self, *_: object) -> None:
        self._changes += 1
        self._entries.clear()
        self._bytes = 0

    async def _run(self) -> None:
        await listen(self._redis, (self._channel,), self._forget, self._forget)
