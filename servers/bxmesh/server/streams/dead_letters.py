"""Work that could not be done: list it, try it again, throw it away."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.message import DecodeError

from bxmesh.server.errors import MeshError, failed_precondition, internal, not_found
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.queue import WorkQueue
from bxmesh.server.streams.scripts import PURGE, READ_PART, REPLAY
from bxmesh.work.v1 import work_pb2

_MOST_PART_BYTES = 4 << 20
_MUTATION_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter under the id by which it is replayed or purged."""

    letter_id: str
    letter: work_pb2.DeadLetter

    @property
    def position(self) -> tuple[int, int]:
        """Its place among the others: when it was given up, in ms since 1970, and a number."""
        milliseconds, _, number = self.letter_id.partition("-")
        return int(milliseconds), int(number)

    def entry(self) -> work_pb2.WorkEntry | None:
        """The work that could not be done; None when it never was a work item."""
        try:
            entry = work_pb2.WorkEntry.FromString(self.letter.entry)
        except DecodeError:
            return None
        return entry if entry.item.item_id and entry.item.max_attempts >= 1 else None


class Replayed(Enum):
    """What became of a letter that was to be replayed."""

    DONE = 1
    """It is back."""
    GONE = 0
    """It was not there any more."""
    ENOUGH = -1
    """It is still there: the request has replayed as many as it may."""
    FULL = -2
    """It is still there: what it came from is full."""
    FORGED = -3
    """It is still there: nobody with the mesh key made it."""


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue

    async def _range(self, first: str, last: str, count: int) -> list[StoredLetter]:
        with redis_errors():
            rows: Any = await self._queue.redis.xrange(
                self._queue.keys.dead, min=first, max=last, count=count
            )
        return [_read(row_id, fields) for row_id, fields in rows]

    async def list(self, page_size: int = 100, after: str = "") -> list[StoredLetter]:
        """A page of letters, oldest first; `after` is the id of the last one seen."""
        start = f"({_checked(after)}" if after else "-"
        return await self._range(start, "+", page_size)

    async def get(self, letter_id: str) -> work_pb2.DeadLetter:
        """One letter; raises MeshError NOT_FOUND."""
        found = await self._range(_checked(letter_id), letter_id, 1)
        if not found:
            raise _no_letter(letter_id)
        return found[0].letter

    async def replay(self, letter_id: str) -> None:
        """Puts a letter's work back, with all its attempts ahead and without its old deadline and
        outcome.

        Raises MeshError NOT_FOUND, or FAILED_PRECONDITION for what never was a work item.
        """
        stored = StoredLetter(letter_id, await self.get(letter_id))
        if stored.entry() is None:
            raise failed_precondition(
                f"Dead letter {letter_id} is not a work item; purge it.",
                reason="UNREADABLE",
                subject=letter_id,
            )
        if await self.replay_stored(stored) is Replayed.GONE:
            raise _no_letter(letter_id)

    async def replay_stored(
        self, stored: StoredLetter, *, mutation: str = "", most: int = 0, capacity: int = 0
    ) -> Replayed:
        """Replays a letter that was read, if it holds a work item.

        What `mutation` names replays at most so many, however often it is begun. With a capacity
        nothing is put back to where there is so much already.
        """
        entry = stored.entry()
        assert entry is not None
        options = self._queue.options
        if not options.seals.holds(options.name, entry):
            return Replayed.FORGED
        entry.item.ClearField("deadline")
        fresh = options.seals.entry(options.name, entry.item)
        fresh.last_trace_context.update(stored.letter.trace_context)
        keys = self._queue.keys
        with redis_errors():
            answer = await self._queue.scripts.call(
                REPLAY,
                [
                    keys.dead,
                    keys.home(stored.letter.origin_stream),
                    keys.outcome(entry.item.item_id),
                    keys.mutation(mutation) if mutation else keys.dead,
                ],
                [
                    stored.letter_id,
                    fresh.SerializeToString(),
                    _MUTATION_MS if mutation else 0,
                    most,
                    capacity,
                ],
            )
        return Replayed(answer)

    async def part(
        self,
        first: str,
        last: str,
        most: int,
        *,
        newest_first: bool = False,
        most_bytes: int = _MOST_PART_BYTES,
    ) -> tuple[Sequence[StoredLetter], bool]:
        """Some of the letters between two ids (as XRANGE and XREVRANGE take them), and whether that
        was all."""
        with redis_errors():
            done, rows = await self._queue.scripts.call(
                READ_PART,
                [self._queue.keys.dead],
                ["XREVRANGE" if newest_first else "XRANGE", first, last, most, most_bytes],
            )
        letters = [
            _read(row_id, dict(zip(fields[0::2], fields[1::2], strict=True)))
            for row_id, fields in rows
        ]
        return letters, bool(done)

    async def purge(self, letter_ids: Sequence[str] | None = None, *, mutation: str = "") -> int:
        """Throws letters away, all of them when none are named; returns how many. Named ones are
        counted for what `mutation` names."""
        key = self._queue.keys.dead
        with redis_errors():
            if letter_ids is None:
                return int(await self._queue.redis.xtrim(key, maxlen=0, approximate=False))
            names = [_checked(letter_id) for letter_id in letter_ids]
            return int(
                await self._queue.scripts.call(
                    PURGE,
                    [key, self._queue.keys.mutation(mutation) if mutation else key],
                    [_MUTATION_MS if mutation else 0, *names],
                )
            )


def _read(letter_id: bytes, fields: Mapping[bytes, bytes]) -> StoredLetter:
    data = fields.get(b"letter", b"")
    try:
        if not data:
            raise DecodeError("the entry holds no letter")
        letter = work_pb2.DeadLetter.FromString(data)
    except DecodeError:
        problem = internal("The dead letter cannot be read.", reason="UNREADABLE")
        letter = work_pb2.DeadLetter(entry=data, error=problem.to_status())
    return StoredLetter(letter_id.decode(), letter)


def _checked(letter_id: str) -> str:
    if not re.fullmatch(r"\d{1,20}-\d{1,20}", letter_id, re.ASCII):
        raise _no_letter(letter_id)
    return letter_id


def _no_letter(letter_id: str) -> MeshError:
    return not_found(f"There is no dead letter {letter_id}.", reason="DEAD_LETTER_NOT_FOUND")
