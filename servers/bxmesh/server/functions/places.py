"""Places for executions."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["FairSlots", "Place", "Places"]


class FairSlots:
    """So many may be held at a time, and so many of them by one owner. Owners who wait take turns, so
    that none waits behind all that another has begun."""

    def __init__(self, count: int, most_each: int | None = None) -> None:
        self._free = count
        self._most_each = count if most_each is None else most_each
        self._held: Counter[str] = Counter()
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    def waiting_of(self, owner: str) -> int:
        """How many of an owner wait."""
        return len(self._queues.get(owner, ()))

    async def acquire(self, owner: str, *, before_own: bool = False) -> None:
        """Waits for a slot, to be given back by `release`; before the owner's others if so told."""
        if self._may_take(owner):
            self._take(owner)
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(owner, deque())
        if before_own:
            queue.appendleft(slot)
        else:
            queue.append(slot)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.cancelled():
                self._forget(owner, slot)
            else:
                # It came at the same moment.
                self.release(owner)
            raise

    def release(self, owner: str) -> None:
        """Gives a slot of an owner back, to whose turn it is."""
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        while (turn := next(filter(self._may_take, self._queues), None)) is not None:
            queue = self._queues.pop(turn)
            slot = queue.popleft()
            if queue:
                self._queues[turn] = queue
            # Whoever waited may be about to notice that it was cancelled.
            if not slot.done():
                self._take(turn)
                slot.set_result(None)

    def _may_take(self, owner: str) -> bool:
        return self._free > 0 and self._held[owner] < self._most_each

    def _take(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1

    def _forget(self, owner: str, slot: asyncio.Future[None]) -> None:
        queue = self._queues.get(owner)
        if queue is None or slot not in queue:
            return
        queue.remove(slot)
        if not queue:
            del self._queues[owner]


class Places:
    """Where executions take place. Of those under way some compute at a time; the others wait for what
    they have called, or for their turn to go on."""

    def __init__(self, computing: int, under_way: int) -> None:
        self._computing = FairSlots(computing)
        # So that what waits long leaves room for others.
        self._under_way = FairSlots(under_way, max(1, under_way // 2))

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return self._under_way.waiting + self._computing.waiting

    def waiting_of(self, owner: str) -> int:
        """How many of an owner wait for a place."""
        return self._under_way.waiting_of(owner) + self._computing.waiting_of(owner)

    @asynccontextmanager
    async def taken(self, owner: str) -> AsyncIterator[Place]:
        """Waits for a place, and keeps it for the time of a block."""
        await self._under_way.acquire(owner)
        try:
            place = Place(self._computing, owner)
            async with place.kept():
                yield place
        finally:
            self._under_way.release(owner)


class Place:
    """Of one execution; others have it while that one waits."""

    def __init__(self, slots: FairSlots, owner: str) -> None:
        self._slots = slots
        self._owner = owner
        self._held = False
        self._away = 0

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Has the place for the time of a block."""
        try:
            await self._take(before_own=False)
            yield
        finally:
            self._give_back()

    @asynccontextmanager
    async def left(self) -> AsyncIterator[None]:
        """Leaves it for the time of a block, and waits for it afterwards. What is called at the same
        time leaves it together."""
        self._away += 1
        self._give_back()
        try:
            yield
        finally:
            self._away -= 1
        if not self._away:
            # What has begun goes on before more of its owner's begins.
            await self._take(before_own=True)

    async def _take(self, *, before_own: bool) -> None:
        await self._slots.acquire(self._owner, before_own=before_own)
        if self._held or self._away:
            # Something else was called meanwhile, and it is left again, or has been taken since.
            self._slots.release(self._owner)
        else:
            self._held = True

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._slots.release(self._owner)
