"""Waiting for work: submit an item, hear how it goes, take it back when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType

import grpc
from google.protobuf.message import DecodeError, Message
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, deadline_exceeded
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.keys import reply_channel
from bxmesh.server.streams.listening import listen
from bxmesh.server.streams.queue import Ticket, WorkQueue
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

# Events come by publish and subscribe, which may lose some; the outcome itself is kept with the
# queue, and this is how often those who wait look for it there.
_POLL_SECONDS = 1.0
_FAREWELL_SECONDS = 2.0
_MOST_EVENTS = 256


class Submission:
    """An item that somebody waits for."""

    def __init__(self, queue: WorkQueue, ticket: Ticket) -> None:
        self.queue = queue
        self.ticket = ticket
        self.finished = False
        self._events: asyncio.Queue[work_pb2.WorkEvent] = asyncio.Queue(_MOST_EVENTS)

    def offer(self, event: work_pb2.WorkEvent) -> None:
        """Takes an event in; progress that nobody reads is dropped, the outcome never."""
        if event.WhichOneof("event") != "progress":
            while self._events.full():
                self._events.get_nowait()
        if not self._events.full():
            self._events.put_nowait(event)

    async def events(
        self, deadline: float | None = None
    ) -> AsyncGenerator[work_pb2.WorkEvent, None]:
        """Progress as it comes, then the outcome as the last event.

        `deadline` is in seconds of the event loop's clock; raises MeshError DEADLINE_EXCEEDED
        after it.
        """
        loop = asyncio.get_running_loop()
        next_look = loop.time() + (0.0 if self.ticket.repeated else _POLL_SECONDS)
        while not self.finished:
            event = await self._next(next_look if deadline is None else min(next_look, deadline))
            kind = event.WhichOneof("event") if event is not None else None
            if kind is None:
                event = await self._look()
                next_look = loop.time() + _POLL_SECONDS
                if event is None and deadline is not None and loop.time() >= deadline:
                    raise deadline_exceeded("The work was not done in the time that was given.")
            if event is not None:
                self.finished = event.WhichOneof("event") == "outcome"
                yield event

    async def outcome(self, deadline: float | None = None) -> work_pb2.WorkOutcome:
        """The outcome, without the progress."""
        async for event in self.events(deadline):
            if event.WhichOneof("event") == "outcome":
                return event.outcome
        raise RuntimeError("the events of a submission end with its outcome")

    async def _next(self, limit: float) -> work_pb2.WorkEvent | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(limit):
                return await self._events.get()
        return None

    async def _look(self) -> work_pb2.WorkEvent | None:
        try:
            outcome = await self.queue.outcome(self.ticket.item_id)
        except MeshError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None
        if outcome is None:
            return None
        return work_pb2.WorkEvent(item_id=self.ticket.item_id, outcome=outcome)


class WorkClient:
    """Submits work and hears how it goes. One per process; use it as an async context manager."""

    def __init__(self, redis: Redis) -> None:
        self.server_id = uuid.uuid4().hex[:12]
        self._redis = redis
        self._submissions: defaultdict[str, list[Submission]] = defaultdict(list)
        self._listener: asyncio.Task[None] | None = None
        self._farewells: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> WorkClient:
        self._listener = asyncio.create_task(
            listen(self._redis, (reply_channel(self.server_id),), self._dispatch, self._look_all)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        await end_tasks(self._listener)
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=_FAREWELL_SECONDS)
            await end_tasks(*self._farewells)

    @property
    def waiting(self) -> int:
        """How many items are waited for."""
        return sum(len(group) for group in self._submissions.values())

    @contextlib.asynccontextmanager
    async def submit(
        self,
        queue: WorkQueue,
        kind: str,
        payload: Message,
        *,
        lane: str = "",
        request_id: str = "",
        deadline: float | None = None,
        max_attempts: int | None = None,
        identity: str = "",
    ) -> AsyncIterator[Submission]:
        """Enqueues an item; leaving the block before its outcome takes it back.

        Takes what `WorkQueue.enqueue` takes. Neither an item that an earlier request began is
        taken back, nor one that a later request waits for too.
        """

        def enqueue(item_id: str, reply_to: str) -> Awaitable[Ticket]:
            return queue.enqueue(
                kind,
                payload,
                item_id=item_id,
                lane=lane,
                request_id=request_id,
                reply_to=reply_to,
                deadline=deadline,
                max_attempts=max_attempts,
                identity=identity,
            )

        async with self.awaiting(queue, enqueue, request_id) as submission:
            yield submission

    @contextlib.asynccontextmanager
    async def awaiting(
        self,
        queue: WorkQueue,
        add: Callable[[str, str], Awaitable[Ticket]],
        request_id: str = "",
    ) -> AsyncIterator[Submission]:
        """What `submit` does for an item that is added otherwise: `add` gets its id and the channel on
        which it is waited for."""
        item_id = uuid.uuid4().hex
        submission = Submission(queue, Ticket(item_id, request_id, "", "", repeated=False))
        self._submissions[item_id].append(submission)
        # Whoever is cancelled while the item is on its way could not take it back, so it arrives
        # first.
        adding = asyncio.ensure_future(add(item_id, reply_channel(self.server_id)))
        try:
            submission.ticket = ticket = await asyncio.shield(adding)
            if ticket.repeated:
                self._forget(item_id, submission)
                self._submissions[ticket.item_id].append(submission)
            yield submission
        finally:
            self._forget(submission.ticket.item_id, submission)
            farewell = asyncio.create_task(_leave(submission, adding))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)
            if not submission.finished:
                await asyncio.shield(farewell)

    @contextlib.contextmanager
    def following(self, queue: WorkQueue, ticket: Ticket) -> Iterator[Submission]:
        """Hears how an item goes that was, or will be, added with the reply channel of this server;
        leaving the block lets it be."""
        submission = Submission(queue, ticket)
        self._submissions[ticket.item_id].append(submission)
        try:
            yield submission
        finally:
            self._forget(ticket.item_id, submission)

    def _forget(self, item_id: str, submission: Submission) -> None:
        group = self._submissions[item_id]
        group.remove(submission)
        if not group:
            del self._submissions[item_id]

    def _look_all(self) -> None:
        # What was told before the subscription was not heard.
        for item_id, group in self._submissions.items():
            for submission in group:
                submission.offer(work_pb2.WorkEvent(item_id=item_id))

    def _dispatch(self, channel: str, data: bytes) -> None:
        try:
            event = work_pb2.WorkEvent.FromString(data)
        except DecodeError:
            _log.warning("an unreadable reply was dropped")
            return
        for submission in tuple(self._submissions.get(event.item_id, ())):
            submission.offer(event)


async def _leave(submission: Submission, adding: asyncio.Future[Ticket]) -> None:
    """Takes back what is not finished; of what is, throws away the outcome that nobody else asks
    for."""
    try:
        ticket = await adding
        if ticket.repeated:
            return
        if not submission.finished:
            await submission.queue.cancel(ticket, unless_joined=True)
        elif not ticket.request_id:
            await submission.queue.forget_outcome(ticket.item_id)
    except MeshError as error:
        _log.info("took no leave of %s: %s", submission.ticket.item_id, error.message)
