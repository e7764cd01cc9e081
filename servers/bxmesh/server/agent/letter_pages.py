"""The dead letters of several queues in one order."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from bxmesh.agent.v1 import queue_pb2
from bxmesh.server.agent.letters import Letter
from bxmesh.server.errors import invalid_argument
from bxmesh.server.streams import DeadLetters, WorkQueue
from bxmesh.server.streams.mailboxes import QUEUE
from bxmesh.server.tasks import TaskStore

__all__ = ["filter_digest", "list_letters", "newest", "scan"]

_DEFAULT_SIZE = 100
# A response fits into the 4 MiB that clients take.
_MOST_BYTES = 3 << 20
# So much is looked at for one page; what does not fit makes it shorter.
_MOST_LOOKED_AT = 5_000
_MOST_BYTES_LOOKED_AT = 32 << 20
_AT_ONCE = 256
_NAMED_AT_ONCE = 8
# An entry is made a moment after the time that its letter says.
_SLACK_MS = 60_000
_LATEST_MS = 1 << 62

Position = tuple[int, int, int]


class _Cursor:
    """Reads the letters of one queue, some at a time."""

    def __init__(
        self,
        queue: WorkQueue,
        index: int,
        wanted: queue_pb2.DeadLetterFilter,
        *,
        newest_first: bool,
        bound: Position | None,
    ) -> None:
        """`bound` is where to begin (newest first: after it) or to end (it included)."""
        self._queue, self._index, self._newest_first = queue, index, newest_first
        self._letters = DeadLetters(queue)
        self._bound = bound
        self._buffer: deque[Letter] = deque()
        self._names: deque[str] | None = None
        if wanted.dead_letter_ids:
            self._names = deque(_named(queue, wanted.dead_letter_ids, newest_first=newest_first))
        first = last = -1
        if wanted.HasField("start_time"):
            first = _clamped(wanted.start_time.seconds * 1000 - _SLACK_MS)
        if wanted.HasField("end_time"):
            last = _clamped(wanted.end_time.seconds * 1000 + _SLACK_MS)
        self._first = "-" if first < 0 else str(first)
        self._last = "+" if last < 0 else str(last)
        if bound is not None and (last < 0 or bound[0] <= last):
            exclusive = newest_first and index >= bound[2]
            self._last = f"{'(' if exclusive else ''}{bound[0]}-{bound[1]}"
        self._done = False

    async def head(self) -> Letter | None:
        """The next letter; None when there are no more."""
        while not self._buffer and not self._done:
            await self._fill()
        return self._buffer[0] if self._buffer else None

    def advance(self) -> None:
        """Goes on behind the head."""
        self._buffer.popleft()

    async def _fill(self) -> None:
        if self._names is not None:
            names = [self._names.popleft() for _ in range(min(_NAMED_AT_ONCE, len(self._names)))]
            self._done = not self._names
            parts = await asyncio.gather(*(self._letters.part(n, n, 1) for n in names))
            found = [Letter(self._queue, self._index, each) for part, _ in parts for each in part]
            self._buffer.extend(letter for letter in found if self._within(letter.position))
            return
        first, last = self._first, self._last
        if self._newest_first:
            first, last = last, first
        part, self._done = await self._letters.part(
            first, last, _AT_ONCE, newest_first=self._newest_first
        )
        self._buffer.extend(Letter(self._queue, self._index, each) for each in part)
        if part and self._newest_first:
            self._last = f"({part[-1].letter_id}"
        elif part:
            self._first = f"({part[-1].letter_id}"

    def _within(self, position: Position) -> bool:
        if self._bound is None:
            return True
        return position < self._bound if self._newest_first else position <= self._bound


async def scan(
    queues: Sequence[WorkQueue],
    wanted: queue_pb2.DeadLetterFilter,
    *,
    newest_first: bool,
    bound: Position | None = None,
) -> AsyncIterator[Letter]:
    """Yields all letters that a filter might mean, in order: newest first after the bound, or
    oldest first up to it."""
    cursors = [
        _Cursor(queue, index, wanted, newest_first=newest_first, bound=bound)
        for index, queue in enumerate(queues)
        if (queue.options.name == QUEUE or not wanted.agent_id)
        and (queue.options.name != QUEUE or not wanted.capability)
    ]
    while True:
        heads = [(head, cursor) for cursor in cursors if (head := await cursor.head())]
        if not heads:
            return
        choose = max if newest_first else min
        head, cursor = choose(heads, key=lambda pair: pair[0].position)
        cursor.advance()
        yield head


async def newest(queues: Sequence[WorkQueue]) -> Position | None:
    """The position of the newest letter; None when there is none."""
    async for letter in scan(queues, queue_pb2.DeadLetterFilter(), newest_first=True):
        return letter.position
    return None


async def list_letters(
    queues: Sequence[WorkQueue],
    store: TaskStore,
    request: queue_pb2.ListDeadLettersRequest,
    sees: Callable[[Letter], bool],
) -> queue_pb2.ListDeadLettersResponse:
    """Returns a page of what the caller sees, newest first.

    It may be shorter than asked for, and even empty, before the last one. Raises MeshError
    INVALID_ARGUMENT for a token that is none, or of another filter.
    """
    wanted = request.filter
    digest = filter_digest(wanted)
    bound = _start(request.page_token, digest, queues)
    response = queue_pb2.ListDeadLettersResponse()
    most, room = request.page_size or _DEFAULT_SIZE, _MOST_BYTES
    looked_at = bytes_looked_at = 0
    last = request.page_token
    async for letter in scan(queues, wanted, newest_first=True, bound=bound):
        if (
            len(response.dead_letters) == most
            or looked_at == _MOST_LOOKED_AT
            or bytes_looked_at > _MOST_BYTES_LOOKED_AT
        ):
            response.next_page_token = last
            break
        if sees(letter) and await letter.fits(wanted, store):
            shown = await letter.message(store)
            room -= shown.ByteSize()
            if room < 0 and response.dead_letters:
                response.next_page_token = last
                break
            response.dead_letters.append(shown)
        looked_at += 1
        bytes_looked_at += len(letter.stored.letter.entry)
        last = f"{digest}:{letter.name}"
    return response


def filter_digest(wanted: queue_pb2.DeadLetterFilter) -> str:
    """Stands for a filter in page tokens."""
    # Order means nothing among names, but in their bytes.
    same = queue_pb2.DeadLetterFilter()
    same.CopyFrom(wanted)
    del same.dead_letter_ids[:]
    same.dead_letter_ids.extend(sorted(set(wanted.dead_letter_ids)))
    return hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()[:16]


def _start(token: str, digest: str, queues: Sequence[WorkQueue]) -> Position | None:
    if not token:
        return None
    found = re.fullmatch(r"([0-9a-f]{16}):([^:]+):(\d{1,19})-(\d{1,19})", token, re.ASCII)
    names = [queue.options.name for queue in queues]
    if not found or found[1] != digest or found[2] not in names:
        raise invalid_argument(
            "page_token",
            "is not the next_page_token of a page with this filter",
            reason="PAGE_TOKEN_INVALID",
        )
    return int(found[3]), int(found[4]), names.index(found[2])


def _named(queue: WorkQueue, names: Sequence[str], *, newest_first: bool) -> list[str]:
    """The entries of a queue's dead letters among names, in order; what is no name is nowhere."""
    pattern = re.compile(rf"{re.escape(queue.options.name)}:(\d{{1,19}})-(\d{{1,19}})", re.ASCII)
    found = {(int(match[1]), int(match[2])) for name in names if (match := pattern.fullmatch(name))}
    return [f"{ms}-{number}" for ms, number in sorted(found, reverse=newest_first)]


def _clamped(milliseconds: int) -> int:
    return max(0, min(milliseconds, _LATEST_MS))
