"""The consumer's side of a queue: take work under a lease, do it, settle it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from opentelemetry import trace
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from bxmesh.server import telemetry
from bxmesh.server.errors import MeshError, deadline_exceeded
from bxmesh.server.streams.connection import CONNECTION_ERRORS, REDIS_ERRORS
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.handling import Handler, WorkContext, handle, remaining_seconds
from bxmesh.server.streams.keys import GROUP
from bxmesh.server.streams.listening import listen
from bxmesh.server.streams.maintenance import Maintenance
from bxmesh.server.streams.metrics import WorkerCounters, WorkerMetrics
from bxmesh.server.streams.queue import QueueOptions, WorkQueue, cancelled, messaging_attributes
from bxmesh.server.streams.scripts import RENEW
from bxmesh.server.streams.settlement import Settlement, worker_lost
from bxmesh.server.streams.stopped import why_stopped
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

_BLOCK_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
_REMEMBERED_CANCELLATIONS = 10_000


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker takes work. Times are in seconds."""

    worker_id: str
    """Its name, and its lane's; no other worker of the queue has it at the same time."""
    concurrency: int = 1
    """Handlers at a time."""
    drain_grace: float = 10.0
    """How long `stop` lets handlers finish."""
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    """By kind of work."""


class Worker:
    """Reads its lane and the shared stream of one queue and runs handlers.

    At least once: an entry leaves the stream only after its outcome is stored. `run` returns after
    `stop`.
    """

    def __init__(self, redis: Redis, queue: QueueOptions, options: WorkerOptions) -> None:
        self.redis = redis
        self.queue = WorkQueue(redis, queue)
        self.options = options
        self._lane = self.queue.keys.lane(options.worker_id)
        self._streams = (self._lane, self.queue.keys.shared)
        # Shorter than a lease: nothing is delivered any more to a worker that has been silent for
        # one.
        self._block = int(min(_BLOCK_SECONDS, queue.lease / 2) * 1000)
        self._turns = itertools.cycle(self._streams)
        self._held: dict[tuple[str, bytes], HeldEntry] = {}
        self._released = asyncio.Event()
        self._recently_cancelled: OrderedDict[str, None] = OrderedDict()
        self._stopping = asyncio.Event()
        self._metrics = WorkerMetrics(queue.name)
        self._maintenance = Maintenance(self.queue, options.worker_id)
        self._settlement = Settlement(
            self.queue, options.worker_id, self._metrics, self._maintenance.expect
        )

    @property
    def counters(self) -> WorkerCounters:
        """What it has done so far."""
        return self._metrics.counters

    @property
    def load(self) -> float:
        """Held entries per slot."""
        return len(self._held) / self.options.concurrency

    async def run(self) -> None:
        """Takes work until `stop` is called, then drains."""
        stopping = asyncio.create_task(self._stopping.wait())
        reader = asyncio.create_task(self._read())
        keeper = asyncio.create_task(self._keep_lane())
        helpers = [
            asyncio.create_task(self._renew()),
            asyncio.create_task(
                listen(self.redis, (self.queue.keys.cancellations,), self._hear_cancellation)
            ),
            asyncio.create_task(self._maintenance.run()),
        ]
        tasks = [stopping, reader, keeper, *helpers]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await end_tasks(reader, keeper)
            await self._drain()
        finally:
            await end_tasks(*tasks, *(held.task for held in self._held.values() if held.task))
        for task in ended:
            task.result()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Takes work for the time of a block, then drains."""
        running = asyncio.create_task(self.run())
        try:
            yield
        finally:
            self.stop()
            longest = self.options.drain_grace + self.queue.options.lease
            await asyncio.wait([running], timeout=longest)
            await end_tasks(running)

    def stop(self) -> None:
        """Stops taking work; `run` returns once what was begun is done, or handed back."""
        self._stopping.set()

    # Taking

    async def _read(self) -> None:
        await self._heal()
        while True:
            free = self.options.concurrency - len(self._held)
            if free <= 0:
                self._released.clear()
                await self._released.wait()
                continue
            try:
                entries = await self._take(free)
                for held in entries[:free]:
                    self._begin(held)
                if len(entries) > free:
                    await self._give_back()
            except CONNECTION_ERRORS:
                await asyncio.sleep(_PAUSE_SECONDS)
            except ResponseError as error:
                _log.warning("the queue %s is repaired: %s", self.queue.options.name, error)
                await asyncio.sleep(_PAUSE_SECONDS)
                await self._heal()

    async def _heal(self) -> None:
        while True:
            try:
                await self._maintenance.heal()
                return
            except REDIS_ERRORS as error:
                _log.warning("waiting for Redis: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _take(self, free: int) -> list[HeldEntry]:
        # A count holds for each stream. With one slot they take turns, so that neither starves.
        if free == 1:
            taken = await self._read_streams([next(self._turns)], 1, None)
            if taken:
                return taken
        return await self._read_streams(self._streams, max(1, free // 2), self._block)

    async def _read_streams(
        self, streams: Sequence[str], count: int, block: int | None
    ) -> list[HeldEntry]:
        answer: Any = await self.redis.xreadgroup(
            GROUP, self.options.worker_id, dict.fromkeys(streams, ">"), count=count, block=block
        )
        # RESP3 answers with a mapping of lists of pages, RESP2 with a list of pairs.
        rows = (
            [(stream, pages[0]) for stream, pages in answer.items()]
            if isinstance(answer, dict)
            else answer
        )
        return [
            self.queue.read(stream.decode(), entry_id, fields)
            for stream, entries in rows or ()
            for entry_id, fields in entries
        ]

    def _begin(self, held: HeldEntry) -> None:
        self._held[held.key] = held
        held.task = asyncio.create_task(self._work(held))
        held.task.add_done_callback(lambda task: self._release(held, task))

    def _release(self, held: HeldEntry, task: asyncio.Task[None]) -> None:
        del self._held[held.key]
        self._released.set()
        if not task.cancelled() and (error := task.exception()):
            _log.error("entry %s is left to its lease", held.entry_id, exc_info=error)

    async def _give_back(self) -> None:
        """Puts what was delivered and is not held back, uncounted."""
        for stream in self._streams:
            keep = [entry_id for of, entry_id in self._held if of == stream]
            await self.queue.requeue(
                stream, worker_id=self.options.worker_id, vanished=False, keep=keep
            )

    # Doing

    async def _work(self, held: HeldEntry) -> None:
        item = held.item
        if held.problem is not None:
            await self._settlement.bury(held, held.problem)
        elif await self._was_cancelled(held):
            await self._settlement.settle(held, None, cancelled())
        elif held.attempt > item.max_attempts:
            await self._settlement.bury(held, await self._why_lost(held))
        else:
            await self._attempt(held, item)

    async def _why_lost(self, held: HeldEntry) -> MeshError:
        try:
            error = await why_stopped(self.redis, self.queue.keys, held.item.item_id)
        except REDIS_ERRORS:
            error = None
        return error or worker_lost(held)

    async def _attempt(self, held: HeldEntry, item: work_pb2.WorkItem) -> None:
        name = self.queue.options.name
        with telemetry.tracer().start_as_current_span(
            f"process {name}",
            context=telemetry.extract(item.trace_context),
            kind=trace.SpanKind.CONSUMER,
            links=_links(held.entry),
            attributes={
                **messaging_attributes(name, "process", item),
                "bxmesh.work.attempt": held.attempt,
                "bxmesh.worker.id": self.options.worker_id,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            result, error = await self._call_handler(held, item)
            if error is not None:
                span.set_attribute("error.type", error.reason)
                span.set_status(trace.StatusCode.ERROR, error.message)
            await self._settlement.settle(held, result, error)

    async def _call_handler(
        self, held: HeldEntry, item: work_pb2.WorkItem
    ) -> tuple[AnyMessage | None, MeshError | None]:
        remaining = remaining_seconds(item)
        if remaining is not None and remaining <= 0:
            return None, deadline_exceeded("The deadline passed while the work waited.")
        handler = self.options.handlers.get(item.kind)
        if handler is None:
            return None, MeshError(
                grpc.StatusCode.UNIMPLEMENTED,
                "UNKNOWN_WORK",
                f"This worker does not know work of the kind {item.kind!r}.",
            )
        began = time.monotonic()
        try:
            return await handle(handler, held, WorkContext(self.redis, held), remaining)
        finally:
            self._metrics.handled(item.kind, time.monotonic() - began)

    async def _was_cancelled(self, held: HeldEntry) -> bool:
        while held.moved and not held.over:
            try:
                if await self.queue.has_ended(held.item.item_id):
                    return True
                break
            except REDIS_ERRORS:
                await asyncio.sleep(_PAUSE_SECONDS)
        # Cancelling deletes what is where its ticket says, or tells whoever has just taken it.
        return held.over or held.item.item_id in self._recently_cancelled

    # Keeping

    async def _keep_lane(self) -> None:
        while True:
            await asyncio.sleep(self.queue.options.lease / 3)
            try:
                await self._maintenance.hold_lane()
            except REDIS_ERRORS as error:
                _log.warning("the lane was not renewed: %s", error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.queue.options.lease / 3)
            try:
                await self._check_held()
            except REDIS_ERRORS as error:
                _log.warning("leases were not renewed: %s", error)

    async def _check_held(self) -> None:
        """Renews the leases; interrupts work that has been cancelled, and work whose lease is
        lost."""
        by_stream: defaultdict[str, list[HeldEntry]] = defaultdict(list)
        for held in self._held.values():
            by_stream[held.stream].append(held)
        for stream, group in by_stream.items():
            over = await self.queue.scripts.call(
                RENEW,
                [stream, *(self.queue.keys.outcome(held.item.item_id) for held in group)],
                [GROUP, self.options.worker_id, *(held.entry_id for held in group)],
            )
            for entry_id in over:
                if held_or_none := self._held.get((stream, entry_id)):
                    held_or_none.interrupt()

    def _hear_cancellation(self, channel: str, data: bytes) -> None:
        self._cancel(data.decode(errors="replace"))

    def _cancel(self, item_id: str) -> None:
        self._recently_cancelled[item_id] = None
        if len(self._recently_cancelled) > _REMEMBERED_CANCELLATIONS:
            self._recently_cancelled.popitem(last=False)
        for held in self._held.values():
            if held.item.item_id == item_id:
                held.interrupt()

    # Stopping

    async def _drain(self) -> None:
        try:
            await self._maintenance.leave_lane()
            await self._give_back()
        except REDIS_ERRORS as error:
            _log.warning("could not leave the lane: %s; its lease will end", error)
        tasks = [held.task for held in self._held.values() if held.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self.options.drain_grace)
            await end_tasks(*tasks)
        try:
            await self._give_back()
            await self.queue.close_lane(self.options.worker_id)
            await self._maintenance.forget(self.options.worker_id)
        except REDIS_ERRORS as error:
            _log.warning("could not hand the rest back: %s; its lease will end", error)


def _links(entry: work_pb2.WorkEntry) -> list[trace.Link]:
    previous = trace.get_current_span(telemetry.extract(entry.last_trace_context))
    context = previous.get_span_context()
    return [trace.Link(context)] if context.is_valid else []
