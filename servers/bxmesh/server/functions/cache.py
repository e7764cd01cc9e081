"""Functions as they were read a moment ago, as long as nothing has changed on any server."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any, NamedTuple

from redis.asyncio import Redis

from bxmesh.server.functions.store import FunctionStore, Stored, no_such_function
from bxmesh.server.security.identities import Identity
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.keys import PREFIX

__all__ = ["FunctionCache"]

_REVISION = f"{PREFIX}:functions:revision"
_MOST_BYTES = 64 << 20
# A server that is killed between its change and the announcement leaves others with what was.
_SECONDS = 5.0


class _Entry(NamedTuple):
    stored: Stored
    revision: bytes
    read: float


class FunctionCache:
    """Answers from memory while the revision, which all servers share, stands still."""

    def __init__(self, redis: Redis, store: FunctionStore) -> None:
        self._redis = redis
        self._store = store
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0

    async def get(self, name: str, wanted: str) -> Stored:
        """Returns a function by version, digest or alias; raises MeshError NOT_FOUND, and UNAVAILABLE
        without Redis or the database."""
        with redis_errors():
            revision: Any = await self._redis.get(_REVISION)
        key, now = (name, wanted), time.monotonic()
        entry = self._entries.get(key)
        if entry and entry.revision == (revision or b"") and now - entry.read < _SECONDS:
            self._entries.move_to_end(key)
            return entry.stored
        stored = await self._store.get(name, wanted)
        self._drop(key)
        self._entries[key] = _Entry(stored, revision or b"", now)
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
        with redis_errors():
            await self._redis.incr(_REVISION)
