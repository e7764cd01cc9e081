"""What becomes of messages whose handlers fail, take long, or do not exist."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.rpc import status_pb2

from bxmesh.client import (
    Agent,
    AsyncMesh,
    BxmeshError,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    Message,
    Unimplemented,
)
from bxmesh.client.agents import DeliveryMode
from bxmesh.client.errors import from_status
from tests.processes import until
from tests.sdk.agents import Greeting, Recorder, Worker, name, soon

MODES: list[DeliveryMode] = ["durable", "direct"]


async def dead_letters(mesh: AsyncMesh, agent_id: str) -> list[Any]:
    return [letter async for letter in mesh.dead_letters(agent_id=agent_id)]


async def report(alice: Recorder) -> tuple[Message, BxmeshError]:
    """The error report that the sender of a message gets."""
    message = await alice.next()
    assert message.type == "ERROR_REPORT"
    return message, from_status(message.read(status_pb2.Status))


async def test_a_handler_that_fails_gets_the_message_again(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob:
        reply = await mesh.request(bob.agent_id, "fail.twice", timeout=20)
        assert reply.type == "at.last"
        assert [(await bob.begun.get()).attempt for _ in range(3)] == [1, 2, 3]
        stats = bob.get_stats()
        assert (stats.handled, stats.retried, stats.dropped) == (1, 2, 0)
        assert stats.by_type["fail.twice"].failed == 2
        await mesh.request(bob.agent_id, "again", timeout=20)
        assert bob.get_stats().retried == 3


@pytest.mark.parametrize(
    ("message_type", "attempts", "error"),
    [
        ("fail.always", 3, "ARITHMETIC_ERROR"),
        ("fail.once_by_policy", 1, "ARITHMETIC_ERROR"),
        ("fail.for_good", 1, "KEY_ERROR"),
    ],
)
async def test_a_message_that_cannot_be_handled_is_told_to_its_sender(
    mesh: AsyncMesh, message_type: str, attempts: int, error: str
) -> None:
    async with Worker().running(mesh) as bob, Recorder().running(mesh) as alice:
        sent = await alice.send(bob.agent_id, message_type)
        message, told = await report(alice)
        assert message.correlation_id == sent.message_id
        assert message.sender == bob.agent_id
        assert (told.code.name, told.reason) == ("INTERNAL", error)
        assert bob.begun.qsize() == attempts
        # Whoever waits for the answer gets the error itself, and no report besides.
        with pytest.raises(InternalError) as raised:
            await alice.request(bob.agent_id, message_type, timeout=20)
        assert raised.value.reason == error
        await until(lambda: bob.get_stats().dropped == 2)
        await mesh.send(alice.agent_id, "last")
        assert (await alice.next()).type == "last"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("message_type", "payload", "kind", "reason"),
    [
        ("drop", None, FailedPrecondition, "NO_USE"),
        ("greeting.request", {"words": 1}, InvalidInput, "PAYLOAD_MISMATCH"),
        ("nobody.handles.this", None, Unimplemented, "UNHANDLED"),
    ],
)
async def test_what_is_hopeless_is_dropped_at_once(
    mesh: AsyncMesh,
    mode: DeliveryMode,
    message_type: str,
    payload: Any,
    kind: type[BxmeshError],
    reason: str,
) -> None:
    async with Worker().running(mesh) as bob, Recorder().running(mesh) as alice:
        with pytest.raises(kind) as raised:
            await alice.request(bob.agent_id, message_type, payload, mode=mode)
        assert raised.value.reason == reason
        await alice.send(bob.agent_id, message_type, payload, mode=mode)
        _, told = await report(alice)
        assert told.reason == reason
        if reason == "PAYLOAD_MISMATCH":
            assert told.field_violations[0][0] == "payload.text"
        await until(lambda: bob.get_stats().dropped == 2)
        # The agent is well.
        await alice.request(bob.agent_id, "greeting.request", Greeting(text="hi"), mode=mode)


async def test_dead_letters_say_why(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob, Recorder().running(mesh) as alice:
        await alice.send(bob.agent_id, "greeting.request", {"words": 1})
        await report(alice)

        async def buried() -> bool:
            return len(await dead_letters(mesh, bob.agent_id)) == 1

        await until(buried)
        (letter,) = await dead_letters(mesh, bob.agent_id)
        assert letter.error.reason == "PAYLOAD_MISMATCH"
        assert letter.content.payload == {"words": 1}
        assert letter.attempts == 1


async def test_error_reports_are_not_reported(mesh: AsyncMesh) -> None:
    async with Agent(name("bob")).running(mesh) as bob, Recorder().running(mesh) as alice:
        await alice.send(bob.agent_id, "ERROR_REPORT", status_pb2.Status(code=13, message="ouch"))
        await alice.send(bob.agent_id, "ERROR_REPORT", {"code": "not a number"})
        await alice.send(bob.agent_id, "unknown")
        _, told = await report(alice)
        assert told.reason == "UNHANDLED"
        await until(lambda: bob.get_stats().in_flight == 0)
        assert (bob.get_stats().handled, bob.get_stats().dropped) == (1, 2)
        assert alice.got.empty()


async def test_a_handler_that_takes_too_long(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob:
        with pytest.raises(BxmeshError) as raised:
            await mesh.request(bob.agent_id, "slow")
        assert raised.value.reason == "HANDLER_TIMEOUT"


async def test_an_answer_is_given_once(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob:
        assert (await mesh.request(bob.agent_id, "reply.twice")).type == "first"
        assert "REPLIED_ALREADY" in await soon(bob.ended.get())


@pytest.mark.parametrize("mode", MODES)
async def test_so_many_at_once(mesh: AsyncMesh, mode: DeliveryMode) -> None:
    async with Worker(concurrency=3).running(mesh) as bob:
        for _ in range(9):
            await mesh.send(bob.agent_id, "wait.here", mode=mode)
        for _ in range(3):
            await soon(bob.begun.get())
        assert (await mesh.agent(bob.agent_id)).max_concurrent_tasks == 3

        async def busy() -> bool:
            return (await mesh.agent(bob.agent_id)).status == "busy"

        await until(busy)
        bob.go.set()
        for _ in range(9):
            await soon(bob.ended.get())
        assert bob.most_at_once == 3


async def test_so_many_of_a_handler_at_once(mesh: AsyncMesh) -> None:
    async with Worker(concurrency=5).running(mesh) as bob:
        for _ in range(3):
            await mesh.send(bob.agent_id, "narrow")
        await soon(bob.begun.get())
        # The others wait for their handler and leave room for other messages.
        await mesh.request(bob.agent_id, "greeting.request", Greeting(text="hi"))
        assert bob.at_once == 1
        bob.go.set()
        for _ in range(3):
            await soon(bob.ended.get())
        assert bob.most_at_once == 1


async def test_leases_are_extended_while_a_handler_works(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob:
        waiting = asyncio.create_task(mesh.request(bob.agent_id, "wait.long", timeout=30))
        await soon(bob.begun.get())
        # Twice as long as a lease of the tests lasts: time itself is what is tested.
        await asyncio.sleep(4)
        bob.go.set()
        assert (await soon(waiting)).type == "waited"
        assert bob.begun.empty()
        assert bob.get_stats().received == 1


async def test_what_nobody_waits_for_any_more_is_cancelled(mesh: AsyncMesh) -> None:
    async with Worker().running(mesh) as bob:
        with pytest.raises(BxmeshError):
            await mesh.request(bob.agent_id, "wait.forever", timeout=0.5)
        await soon(bob.begun.get())
        assert await soon(bob.ended.get()) == "cancelled"
        await until(lambda: bob.get_stats().in_flight == 0)
        await mesh.request(bob.agent_id, "greeting.request", Greeting(text="hi"))
