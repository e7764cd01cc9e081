"""Telling what a model writes, while it writes."""

from __future__ import annotations

import asyncio

import grpc

from bxmesh.client import FailedPrecondition
from bxmesh.client.host.written import Written
from tests.sdk.agents import soon


class Listener:
    """Hears what is told, when the test lets it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def hear(self, text: str) -> None:
        await self.go_on.wait()
        self.heard.append(text)

    async def all(self, length: int) -> str:
        while sum(map(len, self.heard)) < length:  # noqa: ASYNC110 - the block tells it
            await asyncio.sleep(0.01)
        return "".join(self.heard)


async def test_pieces_are_told_in_order_and_together() -> None:
    listener = Listener()
    async with Written(listener.hear) as written:
        pieces = [f"{number} " for number in range(1000)]
        for piece in pieces:
            written.add(piece)
            await asyncio.sleep(0)
        text = "".join(pieces)
        assert await soon(listener.all(len(text))) == text
    assert len(listener.heard) < len(pieces) / 10


async def test_who_listens_slowly_holds_nobody_up() -> None:
    listener = Listener()
    listener.go_on.clear()
    async with Written(listener.hear) as written:
        written.add("never heard")
        await asyncio.sleep(0)
    listener.go_on.set()
    await asyncio.sleep(0)
    assert listener.heard == []


async def test_no_more_is_told_than_an_answer_holds() -> None:
    listener = Listener()
    async with Written(listener.hear) as written:
        for _ in range(10):
            written.add("x" * 10_000)
        assert len(await soon(listener.all(65_536))) == 65_536
        assert max(map(len, listener.heard)) <= 16_384
        assert "".join(listener.heard) == "x" * 65_536


async def test_what_is_no_text_is_told_as_one() -> None:
    listener = Listener()
    async with Written(listener.hear) as written:
        written.add("a\ud800b")
        assert await soon(listener.all(3)) == "a?b"


async def test_a_task_that_is_another_s_is_told_of_no_more() -> None:
    told = []

    async def lost(text: str) -> None:
        told.append(text)
        raise FailedPrecondition(
            "lost", code=grpc.StatusCode.FAILED_PRECONDITION, reason="LEASE_LOST"
        )

    async with Written(lost) as written:
        written.add("one")
        while not told:  # noqa: ASYNC110 - the block tells it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        written.add("two")
        await asyncio.sleep(0.2)
    assert told == ["one"]
