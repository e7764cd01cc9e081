"""Work that could not be done: list it, try it again, throw it away."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from bxmesh.server.errors import MeshError, failed_precondition, internal, not_found
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.queue import WorkQueue
from bxmesh.server.streams.scripts import REPLAY
from bxmesh.work.v1 import work_pb2


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter under the id by which it is replayed or purged."""

    letter_id: str
    letter: work_pb2.DeadLetter


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
        letter = await self.get(letter_id)
        try:
            entry = work_pb2.WorkEntry.FromString(letter.entry)
        except DecodeError:
            entry = work_pb2.WorkEntry()
        if not entry.item.item_id or entry.item.max_attempts < 1:
            raise failed_precondition(
                f"Dead letter {letter_id} is not a work item; purge it.",
                reason="UNREADABLE",
                subject=letter_id,
            )
        fresh = work_pb2.WorkEntry(item=entry.item, last_trace_context=letter.trace_context)
        fresh.item.ClearField("deadline")
        keys = self._queue.keys
        with redis_errors():
            found = await self._queue.scripts.call(
                REPLAY,
                [keys.dead, keys.home(letter.origin_stream), keys.outcome(entry.item.item_id)],
                [letter_id, fresh.SerializeToString()],
            )
        if not found:
            raise _no_letter(letter_id)

    async def purge(self, letter_ids: Sequence[str] | None = None) -> int:
        """Throws letters away, all of them when none are named; returns how many."""
        key = self._queue.keys.dead
        with redis_errors():
            if letter_ids is None:
                return int(await self._queue.redis.xtrim(key, maxlen=0, approximate=False))
            names = [_checked(letter_id) for letter_id in letter_ids]
            return int(await self._queue.redis.xdel(key, *names)) if names else 0


def _read(letter_id: bytes, fields: Mapping[bytes, bytes]) -> StoredLetter:
    data = fields.get(b"letter", b"")
    try:
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
