"""Messages between agents in both modes, and the plain calls that send them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bxmesh.agent.v1.task_pb2 import TaskProgress
from bxmesh.client import (
    AsyncMesh,
    DeadlineExceeded,
    InvalidInput,
    Mesh,
    NotFound,
    PermissionDenied,
)
from bxmesh.client.agents import DeliveryMode
from bxmesh.server.embedded import EmbeddedMesh
from tests.sdk.agents import Greeting, Recorder, Worker, name, soon

MODES: list[DeliveryMode] = ["durable", "direct"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_message_arrives_as_it_was_sent(mesh: AsyncMesh, mode: DeliveryMode) -> None:
    async with Recorder().running(mesh) as bob, Recorder().running(mesh) as alice:
        receipt = await alice.send(
            bob.agent_id,
            "status.update",
            Greeting(text="hi"),
            mode=mode,
            priority="high",
            conversation_id="conversation-1",
            correlation_id="earlier",
            headers={"colour": "blue"},
            expires_in=60,
        )
        message = await bob.next()
        assert message.id == receipt.message_id
        assert (message.sender, message.recipient) == (alice.agent_id, bob.agent_id)
        assert message.type == "status.update"
        assert message.payload == {"text": "hi"}
        assert message.read(Greeting) == Greeting(text="hi")
        assert message.priority == "high"
        assert (message.conversation_id, message.correlation_id) == ("conversation-1", "earlier")
        assert message.headers == {"colour": "blue"}
        assert message.reply_to == alice.agent_id
        assert message.create_time is not None
        assert message.expire_time is not None
        assert message.expire_time - message.create_time < timedelta(seconds=61)
        assert (message.attempt, message.delivery_mode) == (1, mode)
        assert bool(message.entry_id) == (mode == "durable")
        assert receipt.receivers == (mode == "direct")
        assert not receipt.held
        assert abs(receipt.create_time - datetime.now(UTC)) < timedelta(minutes=1)


async def test_protobuf_travels_as_it_is(mesh: AsyncMesh) -> None:
    async with Recorder().running(mesh) as bob:
        await mesh.send(bob.agent_id, "progress", TaskProgress(percent=5))
        message = await bob.next()
        assert message.payload == TaskProgress(percent=5)
        assert message.sender == "admin"


@pytest.mark.parametrize("mode", MODES)
async def test_requests_are_answered(mesh: AsyncMesh, mode: DeliveryMode) -> None:
    async with Worker().running(mesh) as bob, Recorder().running(mesh) as alice:
        reply = await alice.request(
            bob.agent_id, "greeting.request", Greeting(text="hi"), mode=mode, conversation_id="c"
        )
        assert reply.type == "greeting.response"
        assert reply.read(Greeting).text == "hi to you"
        assert reply.sender == bob.agent_id
        assert reply.conversation_id == "c"
        assert reply.correlation_id == (await bob.begun.get()).id
        with pytest.raises(InvalidInput, match="being handled"):
            await reply.reply("thanks")
        (plain, other) = await asyncio.gather(
            mesh.request(bob.agent_id, "greeting.request", Greeting(text="1"), mode=mode),
            mesh.request(bob.agent_id, "greeting.request", Greeting(text="2"), mode=mode),
        )
        assert [plain.payload["text"], other.payload["text"]] == ["1 to you", "2 to you"]


@pytest.mark.parametrize("mode", MODES)
async def test_without_a_waiting_call_the_answer_is_a_message(
    mesh: AsyncMesh, mode: DeliveryMode
) -> None:
    async with (
        Worker().running(mesh) as bob,
        Recorder().running(mesh) as alice,
        Recorder().running(mesh) as carol,
    ):
        sent = await alice.send(bob.agent_id, "greeting.request", Greeting(text="hi"), mode=mode)
        reply = await alice.next()
        assert (reply.type, reply.correlation_id) == ("greeting.response", sent.message_id)
        await alice.send(
            bob.agent_id,
            "greeting.request",
            Greeting(text="hi"),
            mode=mode,
            reply_to=carol.agent_id,
        )
        assert (await carol.next()).payload == {"text": "hi to you"}
        assert alice.got.empty()


async def test_broadcasts_reach_those_who_fit(mesh: AsyncMesh) -> None:
    capability = f"cap.{name('x').replace('-', '_')}"
    bob, carol = Recorder(capabilities=[capability]), Recorder(capabilities=[capability])
    async with bob.running(mesh), carol.running(mesh), Recorder().running(mesh) as dave:
        receipt = await bob.broadcast("news", {"n": 1}, capabilities=[capability])
        assert (receipt.recipients, receipt.refused) == (1, ())
        assert (await carol.next()).id == receipt.message_id
        receipt = await bob.broadcast(
            "news", {"n": 2}, capabilities=[capability], include_sender=True, mode="direct"
        )
        assert receipt.recipients == 2
        assert (await bob.next()).payload == (await carol.next()).payload == {"n": 2}
        assert dave.got.empty()
        found = await dave.discover(capability)
        assert {one.agent_id for one in found.agents} == {bob.agent_id, carol.agent_id}
        assert (await dave.discover("nobody.can")).missing_capabilities == ("nobody.can",)


async def test_refusals_are_typed(mesh: AsyncMesh) -> None:
    with pytest.raises(NotFound) as unknown:
        await mesh.send(name("nobody"), "x")
    assert unknown.value.reason == "AGENT_NOT_FOUND"
    async with Recorder().running(mesh) as bob:
        with pytest.raises(PermissionDenied) as forged:
            await mesh.send(bob.agent_id, "x", sender="somebody-else")
        assert forged.value.reason == "SENDER_FORGED"
        with pytest.raises(InvalidInput) as large:
            await mesh.send(bob.agent_id, "x", "x" * (1 << 20))
        assert large.value.code.name == "INVALID_ARGUMENT"
        with pytest.raises(DeadlineExceeded) as expired:
            await mesh.send(bob.agent_id, "x", expires_in=-1)
        assert expired.value.reason == "MESSAGE_EXPIRED"
        for mode in MODES:
            with pytest.raises(DeadlineExceeded) as silent:
                await mesh.request(bob.agent_id, "x", timeout=0.3, mode=mode)
            assert silent.value.reason == "NO_REPLY"
        with pytest.raises(InvalidInput, match="priority"):
            await mesh.send(bob.agent_id, "x", priority="urgent")  # type: ignore[arg-type]


async def test_what_is_held_is_delivered_when_the_agent_comes(mesh: AsyncMesh) -> None:
    bob = Recorder()
    receipt = await mesh.send(bob.agent_id, "early", {"n": 1}, hold=True)
    assert receipt.held
    async with bob.running(mesh):
        assert (await bob.next()).id == receipt.message_id


async def test_the_same_name_is_one_message(mesh: AsyncMesh) -> None:
    async with Recorder().running(mesh) as bob:
        identity = name("message")
        for _ in range(3):
            await mesh.send(bob.agent_id, "once", message_id=identity)
        await mesh.send(bob.agent_id, "last")
        assert [(await bob.next()).type for _ in range(2)] == ["once", "last"]


async def test_without_asyncio(mesh: AsyncMesh, shared_server: EmbeddedMesh) -> None:
    async with Worker().running(mesh) as bob:

        def use() -> None:
            with Mesh(shared_server.address, state_dir=shared_server.state_dir) as plain:
                reply = plain.request(bob.agent_id, "greeting.request", {"text": "hi"})
                assert reply.payload == {"text": "hi to you"}
                assert plain.agent(bob.agent_id).agent_type == "Worker"
                for event in plain.watch_agents():
                    if event.agent.agent_id == bob.agent_id:
                        break
                assert event.kind == "joined"

        await soon(asyncio.to_thread(use))
