"""The producer's side of a queue: enqueue, cancel, look."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry import trace
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bxmesh.server import telemetry
from bxmesh.server.errors import (
    MeshError,
    deadline_exceeded,
    internal,
    invalid_argument,
    resource_exhausted,
)
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import is_missing_group, redis_errors
from bxmesh.server.streams.entries import HeldEntry, read_entry
from bxmesh.server.streams.keys import GROUP, QueueKeys
from bxmesh.server.streams.scripts import CANCEL, CLOSE_LANE, ENQUEUE, FORGET_OUTCOME, REQUEUE
from bxmesh.server.streams.seals import UNSEALED, Seals
from bxmesh.work.v1 import work_pb2

_PAGE = 200
# What is larger belongs into a bundle.
_MOST_ENTRY_BYTES = 64 << 20
# A request id outlives the longest work; when that has ended, the id is remembered as long as the
# outcome.
_REQUEST_SECONDS = 7 * 86400.0
# What is this young may just be on its way.
_YOUNG_SECONDS = 60.0
_LATEST_DEADLINE = 253402300799.0


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How a queue behaves. Times are in seconds."""

    name: str
    max_depth: int = 10_000
    """Entries that may wait in one stream; beyond that enqueueing answers RESOURCE_EXHAUSTED."""
    lease: float = 10.0
    """How long a worker may be silent before its work goes to another."""
    max_attempts: int = 3
    """Tries before an item becomes a dead letter."""
    retry_base: float = 0.2
    """The first retry waits a random time up to this, each further one up to twice as long."""
    retry_cap: float = 30.0
    """No retry waits longer."""
    outcome_lifetime: float = 300.0
    """How long the end of an item, and with it the meaning of its request id, is remembered. The
    end of work for which nobody waits and that has no request id is not remembered."""
    max_dead_letters: int = 100_000
    """Dead letters kept; the oldest go first."""
    dead_letter_lifetime: float = 30 * 86400.0
    """How long a dead letter is kept."""
    seals: Seals = UNSEALED
    """What entries are sealed with; those without a good seal are refused."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where an enqueued item is."""

    item_id: str
    request_id: str
    stream: str
    entry_id: str
    repeated: bool
    """Whether the request id stood for an item already; then that item is meant."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What is in a queue at one moment."""

    waiting: int
    """Entries that no worker has taken."""
    pending: int
    """Entries that some worker holds."""
    delayed: int
    """Retries that wait for their time."""
    dead: int
    """Dead letters."""
    oldest_age: float
    """Seconds since the oldest entry was added; 0 for an empty queue."""


class WorkQueue:
    """One queue, as those who put work into it see it."""

    def __init__(self, redis: Redis, options: QueueOptions) -> None:
        self.redis = redis
        self.options = options
        self.keys = QueueKeys(options.name)
        self.scripts = ScriptBatcher(redis)

    async def enqueue(
        self,
        kind: str,
        payload: Message,
        *,
        item_id: str = "",
        lane: str = "",
        request_id: str = "",
        reply_to: str = "",
        deadline: float | None = None,
        max_attempts: int | None = None,
        identity: str = "",
    ) -> Ticket:
        """Adds work; it is durable when this returns.

        `lane` is the worker best placed to do it: when its lane is closed or full, any worker.
        `deadline` is in Unix seconds. A repeated `request_id` adds nothing and returns the first
        item. Raises MeshError RESOURCE_EXHAUSTED when the queue is full, DEADLINE_EXCEEDED when it
        is too late already, INVALID_ARGUMENT for more than 64 MiB, UNAVAILABLE without Redis; then
        it may have been added all the same, which a request id makes harmless.
        """
        item = self.new_item(
            kind,
            payload,
            item_id=item_id,
            request_id=request_id,
            reply_to=reply_to,
            deadline=deadline,
            max_attempts=max_attempts,
            identity=identity,
        )
        with self.sending(item):
            return await self._add(item, lane)

    def new_item(
        self,
        kind: str,
        payload: Message,
        *,
        item_id: str = "",
        request_id: str = "",
        reply_to: str = "",
        deadline: float | None = None,
        max_attempts: int | None = None,
        identity: str = "",
    ) -> work_pb2.WorkItem:
        """An item that `enqueue` would add; raises MeshError DEADLINE_EXCEEDED when it is too late."""
        if deadline is not None and deadline <= time.time():
            raise deadline_exceeded("The deadline had passed before the work was queued.")
        item = work_pb2.WorkItem(
            item_id=item_id or uuid.uuid4().hex,
            kind=kind,
            reply_to=reply_to,
            max_attempts=max_attempts or self.options.max_attempts,
            identity=identity,
            request_id=request_id,
        )
        item.payload.Pack(payload)
        item.enqueue_time.GetCurrentTime()
        if deadline is not None and deadline < _LATEST_DEADLINE:
            item.deadline.FromNanoseconds(int(deadline * 1e9))
        return item

    def entry_of(self, item: work_pb2.WorkItem) -> bytes:
        """The content of a stream entry for an item; raises MeshError INVALID_ARGUMENT over 64 MiB."""
        return entry_of(item, self.options.name, self.options.seals)

    def read(self, stream: str, entry_id: bytes, fields: Mapping[bytes, bytes]) -> HeldEntry:
        """What one of its streams holds; what is forged or cannot be read has a problem."""
        return read_entry(self.options.name, self.options.seals, stream, entry_id, fields)

    @contextlib.contextmanager
    def sending(self, item: work_pb2.WorkItem) -> Iterator[None]:
        """A span around adding an item, whose context the item carries on."""
        with telemetry.tracer().start_as_current_span(
            f"send {self.options.name}",
            kind=trace.SpanKind.PRODUCER,
            attributes=messaging_attributes(self.options.name, "send", item),
        ):
            telemetry.inject(item.trace_context)
            yield

    async def _add(self, item: work_pb2.WorkItem, lane: str) -> Ticket:
        keys, options, request_id = self.keys, self.options, item.request_id
        entry = self.entry_of(item)
        with redis_errors():
            answer = await self.scripts.call(
                ENQUEUE,
                [
                    keys.shared,
                    keys.request(request_id) if request_id else keys.shared,
                    keys.lane(lane) if lane else keys.shared,
                    keys.lanes,
                    keys.delayed,
                ],
                [
                    entry,
                    item.item_id,
                    request_milliseconds(item),
                    options.max_depth,
                    lane,
                ],
            )
        if answer[0] == -1:
            raise resource_exhausted(
                f"The queue {options.name} is full: {answer[1]} items wait. Try again later.",
                retry_after=1.0,
                reason="QUEUE_FULL",
                subject=f"queue:{options.name}",
            )
        return ticket_of(answer, request_id)

    async def outcome(self, item_id: str) -> work_pb2.WorkOutcome | None:
        """How an item ended, or None while it has not, or no longer is remembered."""
        with redis_errors():
            data: Any = await self.redis.get(self.keys.outcome(item_id))
        try:
            return None if data is None else work_pb2.WorkOutcome.FromString(data)
        except DecodeError as error:
            message = "The outcome of the work cannot be read."
            raise internal(message, reason="UNREADABLE") from error

    async def lost(self, item_id: str, age: float) -> bool:
        """Whether nobody has an item any more that was added so many seconds ago, with its name as the
        request id, nor remembers its end: Redis was emptied, or the item never came there.

        Of very old ones that is not known.
        """
        if not _YOUNG_SECONDS < age < _REQUEST_SECONDS:
            return False
        names = self.keys.request(item_id), self.keys.outcome(item_id)
        with redis_errors():
            return not await self.redis.exists(*names)

    async def forget_outcome(self, item_id: str) -> None:
        """Throws away how an item ended, once everybody knows."""
        with redis_errors():
            await self.scripts.call(FORGET_OUTCOME, [self.keys.outcome(item_id)], [])

    async def has_ended(self, item_id: str) -> bool:
        """Whether the end of an item is remembered; raises what Redis raises."""
        return bool(await self.redis.exists(self.keys.outcome(item_id)))

    async def cancel(self, ticket: Ticket, *, unless_joined: bool = False) -> bool:
        """Takes an item back; True when no worker had begun. Cancelling what has ended does
        nothing.

        `unless_joined` lets it be when its request was repeated, so that somebody else waits for
        it too.
        """
        keys = self.keys
        outcome = work_pb2.WorkOutcome(item_id=ticket.item_id)
        outcome.status.CopyFrom(cancelled().to_status())
        outcome_key = keys.outcome(ticket.item_id)
        with redis_errors():
            answer = await self.scripts.call(
                CANCEL,
                [
                    ticket.stream or keys.shared,
                    outcome_key,
                    keys.request(ticket.request_id) if ticket.request_id else outcome_key,
                ],
                [
                    GROUP,
                    ticket.entry_id or "0-1",
                    ticket.item_id,
                    outcome.SerializeToString(),
                    int(self.options.outcome_lifetime * 1000),
                    keys.cancellations,
                    int(unless_joined),
                ],
            )
        return bool(answer)

    async def requeue(
        self,
        stream: str,
        *,
        worker_id: str = "",
        idle: float = 0.0,
        vanished: bool,
        keep: Sequence[bytes] = (),
    ) -> int:
        """Gives what a worker, or any, took and left for `idle` seconds to all; returns how many
        entries.

        With `vanished` it counts as tried; `keep` are entries to leave. Raises what Redis raises.
        """
        moved, count = 0, _PAGE
        while count >= _PAGE:
            try:
                count = await self.scripts.call(
                    REQUEUE,
                    [stream, self.keys.home(stream)],
                    [GROUP, int(idle * 1000), worker_id, _PAGE, int(vanished), *keep],
                )
            except ResponseError as error:
                if not is_missing_group(error):
                    raise
                count = 0
            moved += count
        return moved

    async def close_lane(self, worker_id: str) -> int:
        """Gives what waits in a lane that nobody holds to all; returns how many entries."""
        moved = 0
        keys = [self.keys.lane(worker_id), self.keys.shared, self.keys.lanes]
        while count := await self.scripts.call(CLOSE_LANE, keys, [GROUP, worker_id, _PAGE]):
            moved += count
        return moved

    async def retire(self, worker_id: str) -> int:
        """Gives all work of a worker that is known to be dead to all; returns how many entries."""
        # Its lane is closed to new work, yet still listed: if this breaks off, maintenance goes on.
        await self.redis.zadd(self.keys.lanes, {worker_id: 0}, xx=True)
        moved = 0
        for stream in (self.keys.lane(worker_id), self.keys.shared):
            moved += await self.requeue(stream, worker_id=worker_id, vanished=True)
        return moved + await self.close_lane(worker_id)

    async def ensure_group(self) -> None:
        """Creates the consumer group at the beginning, so that nothing added before is missed."""
        try:
            await self.redis.xgroup_create(self.keys.shared, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def stats(self) -> QueueStats:
        """What is in the queue now; raises MeshError UNAVAILABLE without Redis."""
        keys = self.keys
        with redis_errors():
            workers: Any = await self.redis.zrange(keys.lanes, 0, -1)
            streams = [keys.shared, *(keys.lane(worker.decode()) for worker in workers)]
            pipeline = self.redis.pipeline(transaction=False)
            for stream in streams:
                pipeline.xlen(stream)
                pipeline.xpending(stream, GROUP)
                pipeline.xrange(stream, count=1)
            pipeline.zcard(keys.delayed)
            pipeline.xlen(keys.dead)
            *rows, delayed, dead = await pipeline.execute(raise_on_error=False)
        total = pending = 0
        oldest = None
        # A stream without a group, before its first worker, answers XPENDING with an error.
        for length, summary, first in zip(rows[0::3], rows[1::3], rows[2::3], strict=True):
            total += length
            pending += summary["pending"] if isinstance(summary, dict) else 0
            if first:
                added = int(first[0][0].split(b"-")[0]) / 1000
                oldest = added if oldest is None else min(oldest, added)
        age = max(0.0, time.time() - oldest) if oldest is not None else 0.0
        return QueueStats(max(0, total - pending), pending, delayed, dead, age)


def entry_of(item: work_pb2.WorkItem, queue: str, seals: Seals) -> bytes:
    """The content of a stream entry for an item; raises MeshError INVALID_ARGUMENT over 64 MiB."""
    entry = seals.entry(queue, item).SerializeToString()
    if len(entry) > _MOST_ENTRY_BYTES:
        raise invalid_argument("payload", f"{len(entry)} bytes are too many for one work item.")
    return entry


def request_milliseconds(item: work_pb2.WorkItem) -> int:
    """How long a script remembers the request id of an item; 0 without one."""
    return int(_REQUEST_SECONDS * 1000) if item.request_id else 0


def ticket_of(answer: Sequence[Any], request_id: str) -> Ticket:
    """What a script that adds an item answers when it did, or did before."""
    if answer[0] == 0:
        return Ticket(answer[1].decode(), request_id, "", "", repeated=True)
    return Ticket(
        answer[1].decode(), request_id, answer[2].decode(), answer[3].decode(), repeated=False
    )


def cancelled() -> MeshError:
    """The error of work that was taken back."""
    return MeshError(
        grpc.StatusCode.CANCELLED, "WORK_CANCELLED", "The work was cancelled before it was done."
    )


def messaging_attributes(
    queue: str, operation: str, item: work_pb2.WorkItem
) -> Mapping[str, str | int]:
    """Span attributes by the OpenTelemetry messaging conventions."""
    return {
        "messaging.system": "redis",
        "messaging.destination.name": queue,
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.message.id": item.item_id,
        "bxmesh.work.kind": item.kind,
    }
