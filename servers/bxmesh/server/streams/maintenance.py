"""What keeps a queue in order while workers come and go: every worker does it, on a timer."""

from __future__ import annotations

import asyncio
import logging
import time

from redis.exceptions import ResponseError

from bxmesh.server.streams.connection import CONNECTION_ERRORS
from bxmesh.server.streams.keys import GROUP
from bxmesh.server.streams.queue import WorkQueue
from bxmesh.server.streams.scripts import FORGET_CONSUMER, HOLD_LANE, MOVE_DUE, SILENT_LANES

_log = logging.getLogger(__name__)

_PAGE = 100
_LONGEST_SLEEP = 1.0
_PAUSE_SECONDS = 0.2
_HOUSEKEEPING_SECONDS = 60.0
_FORGOTTEN_CONSUMER_MS = 3_600_000


class Maintenance:
    """Moves due retries, gives the work of silent workers to others, and throws away what is too
    old."""

    def __init__(self, queue: WorkQueue, worker_id: str) -> None:
        self._queue = queue
        self._worker_id = worker_id
        self._wake = asyncio.Event()
        self._next_due = 0.0
        self._next_reclaim = 0.0
        self._next_housekeeping = 0.0

    def expect(self, delay: float) -> None:
        """Says that a retry is due in so many seconds."""
        self._next_due = min(self._next_due, time.monotonic() + delay)
        self._wake.set()

    async def heal(self) -> None:
        """Creates the group and the lane, at the start and after Redis has lost them."""
        await self._queue.ensure_group()
        await self.hold_lane()

    async def hold_lane(self, seconds: float | None = None) -> None:
        """Renews this worker's lane, or makes it; for the time of a lease, unless another is
        given."""
        queue = self._queue
        lease = queue.options.lease if seconds is None else seconds
        await queue.scripts.call(
            HOLD_LANE,
            [queue.keys.lanes, queue.keys.lane(self._worker_id)],
            [GROUP, self._worker_id, int(lease * 1000)],
        )

    async def leave_lane(self) -> None:
        """Lets the lane go; what waits there goes to all workers."""
        await self.hold_lane(0)
        await self._queue.close_lane(self._worker_id)

    async def forget(self, worker_id: str) -> None:
        """Removes a worker's name from the group, if it holds nothing."""
        await self._queue.scripts.call(
            FORGET_CONSUMER, [self._queue.keys.shared], [GROUP, worker_id]
        )

    async def run(self) -> None:
        """Keeps the queue in order until it is cancelled."""
        while True:
            try:
                await self._round()
            except CONNECTION_ERRORS:
                # While Redis was away nobody could renew a lease: give all the time to do so.
                self._next_reclaim = time.monotonic() + self._queue.options.lease
                await asyncio.sleep(_PAUSE_SECONDS)
            except ResponseError as error:
                _log.warning("the queue %s is not in order: %s", self._queue.options.name, error)
                await asyncio.sleep(_PAUSE_SECONDS)
            self._wake.clear()
            next_step = min(self._next_due, self._next_reclaim)
            pause = min(_LONGEST_SLEEP, next_step - time.monotonic())
            try:
                async with asyncio.timeout(max(0.005, pause)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> None:
        queue = self._queue
        now = time.monotonic()
        moved, wait = await queue.scripts.call(
            MOVE_DUE, [queue.keys.delayed, queue.keys.shared], [_PAGE]
        )
        self._next_due = now + (0.0 if moved == _PAGE else wait / 1000 if wait >= 0 else 3600.0)
        if now >= self._next_reclaim:
            self._next_reclaim = now + queue.options.lease / 3
            await self.reclaim()
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + _HOUSEKEEPING_SECONDS
            await self.tidy()

    async def reclaim(self) -> None:
        """Gives back what others took and left."""
        queue, lease = self._queue, self._queue.options.lease
        # In its own lane, too: a reply that was lost on the way left entries there that it never
        # saw.
        for stream in (queue.keys.shared, queue.keys.lane(self._worker_id)):
            await queue.requeue(stream, idle=lease, vanished=True)
        for name in await queue.scripts.call(SILENT_LANES, [queue.keys.lanes], []):
            worker_id = name.decode()
            moved = await queue.requeue(queue.keys.lane(worker_id), idle=lease, vanished=True)
            moved += await queue.close_lane(worker_id)
            if moved:
                _log.warning("worker %s fell silent; %d items go to others", worker_id, moved)

    async def tidy(self) -> None:
        """Throws away old dead letters and the names of workers that are long gone."""
        queue = self._queue
        oldest = int((time.time() - queue.options.dead_letter_lifetime) * 1000)
        await queue.redis.xtrim(queue.keys.dead, minid=max(0, oldest))
        for consumer in await queue.redis.xinfo_consumers(queue.keys.shared, GROUP):
            if consumer["idle"] > _FORGOTTEN_CONSUMER_MS:
                await self.forget(consumer["name"].decode())
