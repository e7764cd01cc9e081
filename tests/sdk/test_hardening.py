"""Agents whose handlers misbehave, and meshes that repeat themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from bxmesh.agent.v1 import delivery_pb2
from bxmesh.client import AsyncMesh, BxmeshError, InvalidInput, Message, RetryPolicy, on
from bxmesh.client.agents import inbox
from bxmesh.client.agents.inbox import Inbox
from bxmesh.client.agents.stats import AgentStats
from bxmesh.client.agents.verdicts import Verdict
from tests.processes import until
from tests.sdk.agents import Greeting, Worker, name, soon


class Careless(Worker):
    """Does what handlers should not do."""

    @on("reply.badly_typed", retry=RetryPolicy(max_attempts=1))
    async def reply_badly_typed(self, message: Message) -> None:
        await message.reply("no type!")

    @on("reply.too_large", retry=RetryPolicy(max_attempts=1))
    async def reply_too_large(self, message: Message) -> None:
        await message.reply("large", "x" * (1 << 20))

    @on("reply.unchecked", retry=RetryPolicy(max_attempts=1))
    async def reply_unchecked(self, message: Message) -> None:
        assert message.responder is not None
        await message.responder("no type!", message.envelope.payload)

    @on("cancel.itself", retry=RetryPolicy(max_attempts=1))
    async def cancel_itself(self, message: Message) -> None:
        inner = asyncio.create_task(asyncio.sleep(60))
        inner.cancel()
        await inner

    @on("swallow.cancellation")
    async def swallow(self, message: Message) -> None:
        self.begun.put_nowait(message)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.put_nowait("swallowed")


@pytest.mark.parametrize(
    ("message_type", "reason"),
    [
        ("reply.badly_typed", "INVALID_ARGUMENT"),
        ("reply.too_large", "PAYLOAD_TOO_LARGE"),
        ("cancel.itself", "HANDLER_CANCELLED"),
    ],
)
async def test_a_careless_handler_fails_alone(
    mesh: AsyncMesh, message_type: str, reason: str
) -> None:
    async with Careless(name("careless")).running(mesh) as bob:
        with pytest.raises(BxmeshError) as raised:
            await mesh.request(bob.agent_id, message_type)
        assert raised.value.reason == reason
        await mesh.request(bob.agent_id, "greeting.request", Greeting(text="hi"))
        assert bob.get_stats().attachments == 1


async def test_an_answer_that_the_mesh_refuses_is_not_sent_for_ever(mesh: AsyncMesh) -> None:
    async with Careless(name("careless")).running(mesh) as bob:
        await mesh.send(bob.agent_id, "reply.unchecked")
        await until(lambda: bob.get_stats().attachments == 2)
        await mesh.request(bob.agent_id, "greeting.request", Greeting(text="hi"))
        assert bob.get_stats().attachments == 2


async def test_a_cancellation_may_be_swallowed(mesh: AsyncMesh) -> None:
    async with Careless(name("careless")).running(mesh) as bob:
        with pytest.raises(BxmeshError):
            await mesh.request(bob.agent_id, "swallow.cancellation", timeout=0.3)
        assert await soon(bob.ended.get()) == "swallowed"
        await mesh.request(bob.agent_id, "greeting.request", Greeting(text="hi"))


async def test_metadata_that_cannot_be_told(mesh: AsyncMesh) -> None:
    class Shy(Worker):
        def get_metadata(self) -> Mapping[str, Any]:
            if self.get_stats().received:
                raise OSError("no such file")
            return {"size": 5}

    async with Shy(name("shy")).running(mesh) as shy:
        await mesh.request(shy.agent_id, "greeting.request", Greeting(text="hi"))
        assert (await mesh.agent(shy.agent_id)).metadata == {"size": "5"}


async def test_too_many_direct_messages_are_counted(
    mesh: AsyncMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_MOST_DIRECT", 2)
    async with Worker(concurrency=1).running(mesh) as bob:
        for _ in range(5):
            await mesh.send(bob.agent_id, "wait.here", mode="direct")
        await until(lambda: bob.get_stats().received == 5)
        assert bob.get_stats().overflowed == 3
        # Durable ones lose nothing.
        await mesh.send(bob.agent_id, "wait.there")
        bob.go.set()
        for _ in range(3):
            await soon(bob.ended.get())


class _Messages:
    """Handles nothing before it may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = 0

    async def process(self, delivery: delivery_pb2.Delivery) -> Verdict:
        self.begun += 1
        await self.go.wait()
        return Verdict.ack()


async def test_what_comes_twice_is_begun_once() -> None:
    messages, posted = _Messages(), []
    box = Inbox(messages, None, AgentStats(), 5, lambda: None)  # type: ignore[arg-type]
    box.post = lambda request: posted.append(request.WhichOneof("request"))
    delivery = delivery_pb2.Delivery(delivery_id="2:1-0", attempt=1)
    box.take(delivery)
    box.take(delivery)
    assert posted == ["credit"]
    assert box.held == ["2:1-0"]
    messages.go.set()
    await until(lambda: box.at_work == 0)
    assert posted == ["credit", "answer", "credit"]
    # An extension says nothing about the answer that is on its way.
    extension = delivery_pb2.Settled(delivery_id="2:1-0")
    extension.lease_expire_time.GetCurrentTime()
    box.settled(extension)
    assert box.held == ["2:1-0"]
    box.take(delivery)
    assert posted[3:] == ["answer", "credit"]
    box.settled(delivery_pb2.Settled(delivery_id="2:1-0"))
    await soon(box.quiet())
    assert messages.begun == 1


async def test_a_message_without_handler_is_no_reply() -> None:
    with pytest.raises(InvalidInput, match="being handled"):
        await Message(delivery_pb2.Delivery().envelope).reply("x")
