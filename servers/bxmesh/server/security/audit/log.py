"""The log in Redis, appended to by all servers of a mesh."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from bxmesh.security.v1.audit_pb2 import AuditEntry
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import Background
from bxmesh.server.streams.scripts import Script

from ..mesh_key import MeshKey
from .checkpoints import Checkpoints
from .entries import NO_HASH, StampedEvent, chained
from .verification import Verdict, verify

__all__ = ["AuditLog", "StampedEvent"]

_log = logging.getLogger(__name__)

_STREAM = "bxmesh:{security}:audit"
_HEAD = "bxmesh:{security}:audit:head"
_CHECKPOINT_SECONDS = 5.0
_RETENTION_SECONDS = 3600.0
_TRIES = 50
_PAGE = 100
_AT_ONCE = 200

# KEYS: stream, head; ARGV: the place and hash of the last entry as known, new hash, entries…
# Returns {} or, when others were faster, {place, hash} of the last entry.
_APPEND = Script("""
local head = redis.call('HMGET', KEYS[2], 'sequence', 'hash')
local last = tonumber(head[1] or 0)
if last ~= tonumber(ARGV[1]) or (head[2] or '') ~= ARGV[2] then return {last, head[2] or ''} end
for i = 4, #ARGV do
  last = last + 1
  redis.call('XADD', KEYS[1], last .. '-0', 'entry', ARGV[i])
end
redis.call('HSET', KEYS[2], 'sequence', last, 'hash', ARGV[3])
return {}
""")


class AuditLog(Background):
    """Appends, reads and verifies; an async context manager, within which checkpoints are made.

    Methods raise what Redis raises.
    """

    def __init__(
        self, redis: Redis, key: MeshKey, checkpoint_file: Path | None = None, days: int = 365
    ) -> None:
        """Takes where this server keeps checkpoints besides, and how long entries are kept."""
        self._redis = redis
        self._key = key.derive("bxmesh audit log")
        self._days = days
        self._scripts = ScriptBatcher(redis)
        self._checkpoints = Checkpoints(redis, key, checkpoint_file)
        self._head = (0, b"")
        self._turn = asyncio.Lock()

    @staticmethod
    async def put_aside(redis: Redis, name: str) -> None:
        """Ends the log in a Redis, whose key is lost, and keeps it under a name."""
        for key in (_STREAM, _HEAD, Checkpoints.KEY):
            if await redis.exists(key):
                await redis.rename(key, f"{key}:{name}")

    async def append(self, events: Sequence[StampedEvent]) -> int:
        """Appends events in order and returns the place of the last."""
        last = 0
        for start in range(0, len(events), _AT_ONCE):
            async with self._turn:
                last = await self._append(events[start : start + _AT_ONCE])
        return last

    async def _append(self, events: Sequence[StampedEvent]) -> int:
        for _ in range(_TRIES):
            sequence, previous = self._head
            packed = []
            for stamped in events:
                sequence += 1
                entry = chained(self._key, stamped, sequence, previous or NO_HASH)
                previous = entry.hash
                packed.append(entry.SerializeToString(deterministic=True))
            answer = await self._scripts.call(
                _APPEND, (_STREAM, _HEAD), (*self._head, previous, *packed)
            )
            if not answer:
                self._head = (sequence, previous)
                return sequence
            self._head = (answer[0], answer[1])
        raise ConnectionError("the audit log is too busy")

    async def head(self) -> tuple[int, bytes]:
        """Returns the place and the hash of the last entry, 0 and nothing before the first."""
        values: Any = await self._redis.hmget(_HEAD, "sequence", "hash")
        return int(values[0] or 0), values[1] or b""

    async def raw(self, after: int) -> list[tuple[int, bytes]]:
        """Returns the places and contents of the first entries after a place, a page at most."""
        found: Any = await self._redis.xrange(_STREAM, min=f"({after}-{2**64 - 1}", count=_PAGE)
        return [
            (int(entry_id.split(b"-")[0]), fields.get(b"entry", b"")) for entry_id, fields in found
        ]

    async def read(self, after: int) -> AsyncIterator[tuple[int, list[AuditEntry]]]:
        """Yields pages of entries after a place, each with its last place, up to the last entry.

        What cannot be read is left out: `verify` tells of it.
        """
        while page := await self.raw(after):
            after = page[-1][0]
            yield after, [entry for _, data in page if (entry := _parsed(data)) is not None]

    async def wait(self, after: int, milliseconds: int) -> None:
        """Returns when there is an entry after a place, or after a time."""
        await self._redis.xread({_STREAM: f"{after}-{2**64 - 1}"}, count=1, block=milliseconds)

    async def verify(self, first: int = 0, last: int = 0) -> Verdict:
        """Checks the entries from a place to a place; 0 means from the first, to the last."""
        return await verify(self, self._checkpoints, self._key, first, last)

    async def checkpoint(self) -> None:
        """Signs the log as it stands, unless that is signed already."""
        sequence, entry_hash = await self.head()
        newest = await self._checkpoints.newest()
        if sequence and (newest is None or newest.sequence < sequence):
            await self._checkpoints.write(sequence, entry_hash, int(time.time() * 1000))

    async def retain(self, now_ms: int | None = None) -> int:
        """Deletes what is older than it is to be kept, up to a checkpoint; returns its place."""
        now_ms = int(time.time() * 1000) if now_ms is None else now_ms
        oldest = now_ms - self._days * 86_400_000
        due = [
            checkpoint
            for checkpoint in await self._checkpoints.all()
            if checkpoint and checkpoint.time_ms < oldest and self._checkpoints.good(checkpoint)
        ]
        if not due:
            return 0
        anchor = due[-1].sequence
        # The checkpoint stays: it proves that the first entry that is kept follows.
        await self._redis.xtrim(_STREAM, minid=f"{anchor + 1}-0", approximate=False)
        await self._checkpoints.forget_before(anchor)
        return anchor

    async def _run(self) -> None:
        next_retention = time.monotonic()
        while True:
            await asyncio.sleep(_CHECKPOINT_SECONDS)
            try:
                await self.checkpoint()
                if time.monotonic() >= next_retention:
                    await self.retain()
                    next_retention = time.monotonic() + _RETENTION_SECONDS
            except (*REDIS_ERRORS, OSError) as error:
                _log.warning("the audit log is not signed: %s", error)


def _parsed(data: bytes) -> AuditEntry | None:
    try:
        return AuditEntry.FromString(data)
    except DecodeError:
        return None
