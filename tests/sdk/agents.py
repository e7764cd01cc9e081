"""Agents for the tests, and what the tests wait with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import BaseModel

from bxmesh.client import Agent, Drop, Message, Retry, RetryPolicy, on

T = TypeVar("T")

AT_ONCE = RetryPolicy(initial_backoff=0.0)


async def soon(awaitable: Awaitable[T], seconds: float = 30.0) -> T:
    """What is awaited, which must come in time."""
    async with asyncio.timeout(seconds):
        return await awaitable


def name(word: str) -> str:
    """A name that no other test has."""
    return f"{word}-{uuid4().hex[:8]}"


class Greeting(BaseModel):
    text: str


class Recorder(Agent):
    """Keeps all that it gets."""

    def __init__(self, agent_id: str = "", **options: Any) -> None:
        super().__init__(agent_id or name("recorder"), **options)
        self.got: asyncio.Queue[Message] = asyncio.Queue()

    async def on_message(self, message: Message) -> None:
        self.got.put_nowait(message)

    async def next(self) -> Message:
        return await soon(self.got.get())


class Worker(Agent):
    """Greets, and fails in several ways; tells the test when a handler begins."""

    concurrency = 3

    def __init__(self, agent_id: str = "", **options: Any) -> None:
        super().__init__(agent_id or name("worker"), **options)
        self.begun: asyncio.Queue[Message] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()
        self.at_once = 0
        self.most_at_once = 0

    @on("greeting.request", model=Greeting)
    async def greet(self, message: Message, greeting: Greeting) -> None:
        self.begun.put_nowait(message)
        await message.reply("greeting.response", Greeting(text=f"{greeting.text} to you"))

    @on("wait.*")
    async def wait(self, message: Message) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.put_nowait(message)
        try:
            await self.go.wait()
            self.ended.put_nowait("done")
            await message.reply("waited")
        except asyncio.CancelledError:
            self.ended.put_nowait("cancelled")
            raise
        finally:
            self.at_once -= 1

    @on("fail.always", retry=AT_ONCE)
    async def fail(self, message: Message) -> None:
        self.begun.put_nowait(message)
        raise ArithmeticError("it does not add up")

    @on("fail.twice", retry=AT_ONCE)
    async def fail_twice(self, message: Message) -> None:
        self.begun.put_nowait(message)
        if message.attempt <= 2:
            raise ArithmeticError("not yet")
        await message.reply("at.last")

    @on("fail.once_by_policy", retry=RetryPolicy(max_attempts=1))
    async def fail_once(self, message: Message) -> None:
        self.begun.put_nowait(message)
        raise ArithmeticError("once is enough")

    @on("fail.for_good", retry=RetryPolicy(initial_backoff=0.0, non_retryable=(LookupError,)))
    async def fail_for_good(self, message: Message) -> None:
        self.begun.put_nowait(message)
        raise KeyError("nothing of that name")

    @on("drop")
    async def drop(self, message: Message) -> None:
        raise Drop("it is of no use", reason="NO_USE")

    @on("again")
    async def again(self, message: Message) -> None:
        self.begun.put_nowait(message)
        if message.attempt == 1:
            raise Retry("later", after=0.0)
        await message.reply("again.done")

    @on("slow", timeout=0.05, retry=RetryPolicy(max_attempts=1))
    async def slow(self, message: Message) -> None:
        await asyncio.Event().wait()

    @on("narrow", concurrency=1)
    async def narrow(self, message: Message) -> None:
        await self.wait(message)

    @on("reply.twice")
    async def reply_twice(self, message: Message) -> None:
        await message.reply("first")
        try:
            await message.reply("second")
        except Exception as error:
            self.ended.put_nowait(str(error))
