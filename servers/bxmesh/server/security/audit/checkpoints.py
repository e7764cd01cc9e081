"""Signed checkpoints: what lies before one, nobody rewrites unseen by a server that keeps it.

Their key comes from the mesh key, as the log's does. Whoever has that can sign anew, but not what is
in the files of servers.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from redis.asyncio import Redis

from ..mesh_key import MeshKey

__all__ = ["Checkpoint", "Checkpoints"]

# The newest is replaced until it is so far from the one before: else there were one for each
# five seconds of years.
_APART_ENTRIES = 1000
_APART_MS = 3_600_000
_MOST_FILE_BYTES = 4 * 1024 * 1024


class Checkpoint(NamedTuple):
    """That the log had an entry with this hash at this place at this time."""

    sequence: int
    hash: bytes
    time_ms: int
    signature: bytes

    def signed(self) -> bytes:
        """Returns what the signature is over."""
        return b"".join(
            (
                b"bxmesh audit checkpoint\0",
                self.sequence.to_bytes(8),
                self.time_ms.to_bytes(8),
                self.hash,
            )
        )


class Checkpoints:
    """Those of one log: in Redis, and the last of them in a file that Redis' clients cannot reach."""

    KEY = "bxmesh:{security}:audit:checkpoints"
    """Where they are in Redis."""

    def __init__(self, redis: Redis, key: MeshKey, file: Path | None) -> None:
        """Takes the file that this server keeps them in besides, None for none."""
        self._redis = redis
        self._private = Ed25519PrivateKey.from_private_bytes(key.derive("bxmesh audit checkpoints"))
        self._public: Ed25519PublicKey = self._private.public_key()
        self._file = file

    async def write(self, sequence: int, entry_hash: bytes, time_ms: int) -> None:
        """Signs that the log stands so."""
        unsigned = Checkpoint(sequence, entry_hash, time_ms, b"")
        checkpoint = unsigned._replace(signature=self._private.sign(unsigned.signed()))
        line = _line(checkpoint)
        present: Any = await self._redis.zrange(self.KEY, -2, -1)
        pipeline = self._redis.pipeline(transaction=True)
        if len(present) == 2 and _close(*map(_parsed, present)):
            pipeline.zrem(self.KEY, present[1])
        pipeline.zadd(self.KEY, {line: sequence})
        await pipeline.execute()
        if self._file is not None:
            await asyncio.to_thread(_append, self._file, line)

    async def all(self) -> list[Checkpoint | None]:
        """Returns all in Redis, by place; None for what cannot be read."""
        lines: Any = await self._redis.zrange(self.KEY, 0, -1)
        return [_parsed(line) for line in lines]

    async def newest(self) -> Checkpoint | None:
        """Returns the last one in Redis."""
        lines: Any = await self._redis.zrange(self.KEY, -1, -1)
        return _parsed(lines[0]) if lines else None

    async def newest_in_file(self) -> Checkpoint | None:
        """Returns the last good one in the file of this server."""
        if self._file is None:
            return None
        found = [
            checkpoint
            for line in await asyncio.to_thread(_lines, self._file)
            if (checkpoint := _parsed(line.encode())) and self.good(checkpoint)
        ]
        return max(found, default=None, key=lambda checkpoint: checkpoint.sequence)

    async def forget_before(self, sequence: int) -> None:
        """Deletes those before a place."""
        await self._redis.zremrangebyscore(self.KEY, "-inf", f"({sequence}")

    def good(self, checkpoint: Checkpoint) -> bool:
        """Whether the signature is this mesh's."""
        try:
            self._public.verify(checkpoint.signature, checkpoint.signed())
        except InvalidSignature:
            return False
        return True


def _close(before: Checkpoint | None, newest: Checkpoint | None) -> bool:
    # What cannot be read stays, for `verify` to find.
    return (
        before is not None
        and newest is not None
        and newest.sequence - before.sequence < _APART_ENTRIES
        and newest.time_ms - before.time_ms < _APART_MS
    )


def _line(checkpoint: Checkpoint) -> str:
    return json.dumps(
        {
            "sequence": checkpoint.sequence,
            "hash": checkpoint.hash.hex(),
            "time_ms": checkpoint.time_ms,
            "signature": checkpoint.signature.hex(),
        }
    )


def _parsed(line: bytes) -> Checkpoint | None:
    try:
        values = json.loads(line)
        return Checkpoint(
            int(values["sequence"]),
            bytes.fromhex(values["hash"]),
            int(values["time_ms"]),
            bytes.fromhex(values["signature"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _append(file: Path, line: str) -> None:
    if file.exists() and file.stat().st_size > _MOST_FILE_BYTES:
        file.replace(file.with_suffix(".old"))
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"{line}\n")
        opened.flush()
        os.fsync(opened.fileno())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
