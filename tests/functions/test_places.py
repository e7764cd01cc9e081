"""Places: turns, how many one may have, and what is left and taken again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bxmesh.server.functions.places import FairSlots, Place, Places

SECONDS = 20.0


class Begun:
    """Executions that hold what they wait for until they are told to end."""

    def __init__(self, slots: FairSlots) -> None:
        self.slots = slots
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, *names: str, **options: Any) -> None:
        """Each name is its owner's and a number, such as `a1`."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._hold(name, **options))
            await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self.slots.release(name[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _hold(self, name: str, **options: Any) -> None:
        await self.slots.acquire(name[0], **options)
        self.order.append(name)


async def test_owners_take_turns() -> None:
    begun = Begun(FairSlots(1))
    await begun.begin("a1", "a2", "a3", "b1", "b2", "c1")
    while len(begun.order) < 6:
        await begun.end(begun.order[-1])
    assert begun.order == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_what_had_begun_goes_before_its_owners_others_alone() -> None:
    begun = Begun(FairSlots(1))
    await begun.begin("a1", "b1", "a2")
    await begun.begin("a3", before_own=True)
    for _ in range(3):
        await begun.end(begun.order[-1])
    assert begun.order == ["a1", "b1", "a3", "a2"]


async def test_one_owner_has_not_all() -> None:
    begun = Begun(FairSlots(4, 2))
    await begun.begin("a1", "a2", "a3", "b1")
    assert begun.order == ["a1", "a2", "b1"]
    assert (begun.slots.waiting, begun.slots.waiting_of("a")) == (1, 1)
    await begun.end("b1")
    assert begun.order == ["a1", "a2", "b1"]
    await begun.end("a1")
    assert begun.order == ["a1", "a2", "b1", "a3"]


async def test_who_waits_no_longer_has_no_turn() -> None:
    slots = FairSlots(1)
    await slots.acquire("a")
    first, second = (asyncio.create_task(slots.acquire(owner)) for owner in ("a", "b"))
    await asyncio.sleep(0)
    assert (slots.waiting, slots.waiting_of("b")) == (2, 1)
    slots.release("a")
    # It was just given the slot.
    first.cancel()
    await second
    assert slots.waiting == 0
    slots.release("b")
    await asyncio.wait_for(slots.acquire("c"), SECONDS)


async def test_a_place_that_is_left_is_anothers() -> None:
    places = Places(1, 4)
    back = asyncio.Event()
    order: list[str] = []

    async def wait() -> None:
        async with places.taken("a") as place:
            async with place.left():
                order.append("left")
                await back.wait()
            order.append("back")

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.05)
    async with places.taken("b"):
        order.append("other")
        back.set()
        await asyncio.sleep(0.05)
        assert places.waiting_of("a") == 1
    await asyncio.wait_for(waiting, SECONDS)
    assert order == ["left", "other", "back"]


@pytest.mark.parametrize("when", ["away", "coming back"])
async def test_a_place_that_is_given_up_is_anothers(when: str) -> None:
    places = Places(1, 4)
    back = asyncio.Event()

    async def wait() -> None:
        async with places.taken("a") as place, place.left():
            await back.wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.05)
    async with places.taken("b"):
        if when == "coming back":
            back.set()
            await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert places.waiting == 0
    async with asyncio.timeout(SECONDS), places.taken("c"):
        pass


async def test_what_is_called_at_once_leaves_a_place_once() -> None:
    slots = FairSlots(1)
    place = Place(slots, "a")
    events = [asyncio.Event() for _ in range(3)]

    async def call(event: asyncio.Event) -> None:
        async with place.left():
            await event.wait()

    async with place.kept():
        calls = [asyncio.create_task(call(event)) for event in events[:2]]
        await asyncio.sleep(0)
        await slots.acquire("b")
        for event in events[:2]:
            event.set()
        await asyncio.sleep(0.01)
        # Both have come back and wait; one more goes.
        calls.append(asyncio.create_task(call(events[2])))
        await asyncio.sleep(0.01)
        slots.release("b")
        await asyncio.wait_for(asyncio.gather(*calls[:2]), SECONDS)
        await asyncio.wait_for(slots.acquire("c"), SECONDS)
        slots.release("c")
        events[2].set()
        await asyncio.wait_for(calls[2], SECONDS)
        waiting = asyncio.create_task(slots.acquire("d"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await asyncio.wait_for(waiting, SECONDS)
