"""Places for executions."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

__all__ = ["FairSlots"]


class FairSlots:
    """So many may hold one at a time. Owners who wait take turns, so that none waits behind all that
    another has begun."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    def waiting_of(self, owner: str) -> int:
        """How many of an owner wait."""
        return len(self._queues.get(owner, ()))

    async def acquire(self, owner: str) -> None:
        """Waits for a place, to be given back by `release`."""
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._forget(owner, place)
            else:
                # It came at the same moment.
                self.release()
            raise

    def release(self) -> None:
        """Gives a place to whose turn it is."""
        if not self._queues:
            self._free += 1
            return
        owner, queue = self._queues.popitem(last=False)
        place = queue.popleft()
        if queue:
            self._queues[owner] = queue
        if place.done():
            # Whoever waited is about to notice that it was cancelled.
            self.release()
        else:
            place.set_result(None)

    def _forget(self, owner: str, place: asyncio.Future[None]) -> None:
        queue = self._queues.get(owner)
        if queue is None or place not in queue:
            return
        queue.remove(place)
        if not queue:
            del self._queues[owner]
