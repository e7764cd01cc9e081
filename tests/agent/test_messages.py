"""Messages between agents: delivered, answered, tried again, given up."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import delivery_pb2, message_pb2
from bxmesh.server.errors import MeshError, unavailable
from bxmesh.server.streams import DeadLetters
from tests.agent.mesh import Mesh, agents, envelope, refused
from tests.processes import until
from tests.registry.mesh import BOB

ACK, RETRY, DROP = (
    delivery_pb2.VERDICT_ACK,
    delivery_pb2.VERDICT_RETRY,
    delivery_pb2.VERDICT_DROP,
)
DIRECT = message_pb2.DELIVERY_MODE_DIRECT


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


async def letters(mesh: Mesh) -> list[Any]:
    queue = mesh.service.mesh.mailboxes.queue
    return [stored.letter for stored in await DeadLetters(queue).list()]


async def test_a_message_arrives_and_is_acknowledged(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        sent = await mesh.send(recipient="bob", json='{"x": 1}', message_type="greeting.request")
        delivery = await bob.delivery()
        assert delivery.envelope.message_id == sent.message_id
        assert delivery.envelope.sender == "alice"
        assert json.loads(delivery.envelope.payload.json.json) == {"x": 1}
        assert (delivery.attempt, delivery.max_attempts) == (1, 5)
        assert (await bob.answer(delivery)).status.code == 0
        assert await mesh.redis.xlen("bxmesh:{work:agents}:inbox:bob:2") == 0


async def test_credit_bounds_what_is_delivered(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=2) as bob:
        for number in range(5):
            await mesh.send(recipient="bob", json=str(number))
        first = [await bob.delivery() for _ in range(2)]
        assert [d.envelope.payload.json.json for d in first] == ["0", "1"]
        # Nothing more comes before there is credit: the answer is the next thing heard.
        await bob.answer(first[0])
        await bob.credit(3)
        rest = [await bob.delivery() for _ in range(3)]
        assert [d.envelope.payload.json.json for d in rest] == ["2", "3", "4"]


async def test_the_urgent_comes_first_and_nobody_starves(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    for priority in (1, 2, 3, 4):
        for number in range(40):
            await mesh.send(recipient="bob", json=str(number), priority=priority)
    async with mesh.connected("bob", lease_id=lease, initial_credit=160) as bob:
        order = [(await bob.delivery()).envelope for _ in range(160)]
    priorities = [each.priority for each in order]
    assert sum(priorities[:40]) > sum(priorities[-40:])
    assert 1 in priorities[:64]
    assert priorities[:64].count(4) >= 30
    for priority in (1, 2, 3, 4):
        numbers = [int(each.payload.json.json) for each in order if each.priority == priority]
        assert numbers == list(range(40))


async def test_one_slot_serves_all_priorities_too(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    for priority in (1, 4):
        for number in range(20):
            await mesh.send(recipient="bob", json=str(number), priority=priority)
    async with mesh.connected("bob", lease_id=lease) as bob:
        got = []
        for _ in range(20):
            delivery = await bob.delivery()
            got.append(delivery.envelope.priority)
            await bob.answer(delivery)
            await bob.credit()
    assert got.count(1) >= 1
    assert got.count(4) >= 14


async def test_retry_comes_again_and_then_becomes_a_dead_letter(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=10) as bob:
        await mesh.send(recipient="bob", message_type="poison")
        error = unavailable("Not today.", reason="NOT_TODAY").to_status()
        for attempt in range(1, 6):
            delivery = await bob.delivery()
            assert delivery.attempt == attempt
            await bob.answer(delivery, RETRY, retry_after=seconds(0.01), error=error)
        # It blocked nobody, and what came after it is delivered.
        await mesh.send(recipient="bob", message_type="fine")
        assert (await bob.delivery()).envelope.message_type == "fine"
    (letter,) = await letters(mesh)
    assert letter.attempts == 5
    assert MeshError.from_status(letter.error).reason == "NOT_TODAY"
    assert letter.worker_id == bob.welcome.connection_id


async def test_drop_is_a_dead_letter_at_once(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob")
        error = unavailable("Never.", reason="NEVER").to_status()
        await bob.answer(await bob.delivery(), DROP, error=error)
    (letter,) = await letters(mesh)
    assert letter.attempts == 1
    assert letter.origin_stream.endswith(":inbox:bob:2")


async def test_a_request_gets_its_answer(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        asking = asyncio.create_task(mesh.send(recipient="bob", reply_timeout=seconds(20)))
        delivery = await bob.delivery()
        await bob.answer(delivery, reply=envelope(json='"hello"', message_type="greeting.response"))
        answer = (await asking).reply
    assert answer.message_type == "greeting.response"
    assert answer.correlation_id == delivery.envelope.message_id
    assert (answer.sender, answer.recipient) == ("bob", "alice")
    assert not await mesh.redis.keys("*waiter*")


async def test_an_answer_may_come_after_the_acknowledgement(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        asking = asyncio.create_task(mesh.send(recipient="bob", reply_timeout=seconds(20)))
        delivery = await bob.delivery()
        await bob.answer(delivery)
        await mesh.send(
            sender="bob", recipient="alice", correlation_id=delivery.envelope.message_id, json="1"
        )
        assert (await asking).reply.payload.json.json == "1"


async def test_only_whoever_was_asked_may_answer(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob, mesh.connected("eve"):
        asking = asyncio.create_task(mesh.send(recipient="bob", reply_timeout=seconds(20)))
        delivery = await bob.delivery()
        await mesh.send(
            sender="eve",
            recipient="eve",
            correlation_id=delivery.envelope.message_id,
            message_type="forged",
        )
        await bob.answer(delivery, reply=envelope(message_type="true"))
        assert (await asking).reply.message_type == "true"


async def test_an_answer_that_nobody_waits_for_goes_to_the_mailbox(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob, mesh.connected("carol") as carol:
        sent = await mesh.send(sender="carol", recipient="bob", conversation_id="c1")
        await bob.answer(await bob.delivery(), reply=envelope(message_type="late"))
        answer = (await carol.delivery()).envelope
        assert (answer.message_type, answer.sender) == ("late", "bob")
        assert (answer.correlation_id, answer.conversation_id) == (sent.message_id, "c1")


async def test_no_answer_in_time(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=0):
        with refused("DEADLINE_EXCEEDED", "NO_REPLY"):
            await mesh.send(recipient="bob", reply_timeout=seconds(0.2))
    # Nobody had begun, so nobody will.
    assert await mesh.redis.xlen("bxmesh:{work:agents}:inbox:bob:2") == 0


async def test_whoever_works_for_nobody_is_told(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        with refused("DEADLINE_EXCEEDED", "NO_REPLY"):
            await mesh.send(recipient="bob", reply_timeout=seconds(0.2))
        delivery = await bob.delivery()
        assert (await bob.hear()).cancel.delivery_id == delivery.delivery_id


async def test_a_request_that_is_dropped_gets_the_error(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        asking = asyncio.create_task(mesh.send(recipient="bob", reply_timeout=seconds(20)))
        error = MeshError.from_status(unavailable("No.", reason="NOT_MINE").to_status())
        await bob.answer(await bob.delivery(), DROP, error=error.to_status())
        with refused("UNAVAILABLE", "NOT_MINE"):
            await asking


async def test_direct_messages_arrive_at_most_once_and_are_kept_nowhere(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        sent = await mesh.send(recipient="bob", delivery_mode=DIRECT, json="1")
        assert sent.receivers == 1
        delivery = await bob.delivery()
        assert (delivery.delivery_id, delivery.envelope.sender) == ("", "alice")
        asking = asyncio.create_task(
            mesh.send(recipient="bob", delivery_mode=DIRECT, reply_timeout=seconds(20))
        )
        request = (await bob.delivery()).envelope
        await mesh.send(
            sender="bob",
            recipient=request.sender,
            correlation_id=request.message_id,
            delivery_mode=DIRECT,
            json='"yes"',
        )
        assert (await asking).reply.payload.json.json == '"yes"'
    lease = await mesh.register("bob")
    assert (await mesh.send(recipient="bob", delivery_mode=DIRECT)).receivers == 0
    assert lease
    assert not await mesh.redis.keys("*:inbox:*:?")


async def test_a_broadcast_goes_to_all_that_fit(mesh: Mesh) -> None:
    for name, capability in (("a", "x"), ("b", "x"), ("c", "y")):
        await mesh.register(name, capability)
    answer = await mesh.stub.BroadcastMessage(
        message_pb2.BroadcastMessageRequest(envelope=envelope(sender="a"), capabilities=["x"]),
        metadata=(("x-api-key", "alice"),),
    )
    assert answer.recipients == 1
    assert await mesh.redis.keys("*:inbox:*:?") == [b"bxmesh:{work:agents}:inbox:b:2"]


async def test_who_sends_is_not_believed(mesh: Mesh) -> None:
    await mesh.register("alices")
    await mesh.register("bobs", metadata_=BOB)
    with refused("PERMISSION_DENIED", "SENDER_FORGED"):
        await mesh.send(sender="bobs", recipient="alices")
    with refused("PERMISSION_DENIED", "SENDER_FORGED"):
        await mesh.send(sender="nobody", recipient="alices")
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        lease = await mesh.register("robs", metadata_=BOB)
        async with mesh.connected("robs", lease_id=lease):
            pass


async def test_unknown_recipient(mesh: Mesh) -> None:
    with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
        await mesh.send(recipient="nobody")
    held = await mesh.send(recipient="later", hold_for_recipient=True, json="1")
    assert held.held
    async with mesh.connected("later") as later:
        assert (await later.delivery()).envelope.message_id == held.message_id


async def test_the_same_message_is_delivered_once(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=10) as bob:
        for _ in range(3):
            await mesh.send(recipient="bob", message_id="m1")
        for _ in range(3):
            await mesh.send(recipient="bob", request_id="r1")
        await mesh.send(recipient="bob", message_id="last")
        names = [(await bob.delivery()).envelope.message_id for _ in range(3)]
        assert names[0] == "m1"
        assert names[2] == "last"


async def test_an_expired_message_is_counted_and_not_delivered(mesh: Mesh) -> None:
    soon = Timestamp()
    soon.FromNanoseconds(int((time.time() + 0.15) * 1e9))
    lease = await mesh.register("bob")
    await mesh.send(recipient="bob", expire_time=soon)
    await mesh.send(recipient="bob", message_type="lasting")
    await asyncio.sleep(0.2)
    async with mesh.connected("bob", lease_id=lease) as bob:
        assert (await bob.delivery()).envelope.message_type == "lasting"
    assert await mesh.redis.hget("bxmesh:{work:agents}:figures:bob", "expired") == b"1"
    with refused("DEADLINE_EXCEEDED", "MESSAGE_EXPIRED"):
        await mesh.send(recipient="bob", expire_time=soon)


async def test_too_large(mesh: Mesh) -> None:
    await mesh.register("bob")
    with refused("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"):
        await mesh.send(recipient="bob", json='"' + "x" * 1_048_570 + '"')


async def test_a_full_mailbox(redis: Any, shared_valkey: str) -> None:
    async with agents(shared_valkey, mailbox_capacity=3) as mesh:
        await mesh.register("bob")
        for _ in range(3):
            await mesh.send(recipient="bob")
        with refused("RESOURCE_EXHAUSTED", "MAILBOX_FULL"):
            await mesh.send(recipient="bob")


async def test_an_unreadable_entry_is_a_dead_letter(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob")
        await bob.answer(await bob.delivery())
        stream = "bxmesh:{work:agents}:inbox:bob:4"
        await mesh.redis.xgroup_create(stream, "workers", id="0", mkstream=True)
        await mesh.redis.xadd(stream, {"entry": b"\xff\xff"})
        await mesh.redis.xadd(stream, {"nothing": b"1"})
        await bob.credit(3)
        await mesh.send(recipient="bob", message_type="fine")
        assert (await bob.delivery()).envelope.message_type == "fine"

        async def are_both_buried() -> bool:
            return len(await letters(mesh)) == 2

        await until(are_both_buried)


@pytest.mark.parametrize("mode", [0, DIRECT])
async def test_a_recipient_is_needed(mesh: Mesh, mode: Any) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await mesh.send(delivery_mode=mode)


async def test_a_reply_to_a_full_mailbox_is_tried_again(redis: Any, shared_valkey: str) -> None:
    async with agents(shared_valkey, mailbox_capacity=1) as mesh:
        await mesh.register("carol")
        await mesh.send(recipient="carol", message_type="fills.it")
        async with mesh.connected("bob", initial_credit=5) as bob:
            await mesh.send(sender="carol", recipient="bob")
            settled = await bob.answer(await bob.delivery(), reply=envelope(message_type="answer"))
            assert settled.status.code == 0
            again = await bob.delivery()
            assert again.attempt == 2
            assert MeshError.from_status(again_error(mesh, again)).reason == "MAILBOX_FULL"


def again_error(mesh: Mesh, delivery: Any) -> Any:
    (connection,) = mesh.service.mesh.connections.of("bob")
    return connection._held[delivery.delivery_id].entry.last_error


async def test_a_repeated_request_is_one_message_with_one_answer(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=5) as bob:
        asking = [
            asyncio.create_task(
                mesh.send(recipient="bob", request_id="r", reply_timeout=seconds(20))
            )
            for _ in range(2)
        ]
        delivery = await bob.delivery()
        await bob.answer(delivery, reply=envelope(json="1"))
        answers = [await each for each in asking]
        assert [a.reply.payload.json.json for a in answers] == ["1", "1"]
        await mesh.send(recipient="bob", message_type="next")
        assert (await bob.delivery()).envelope.message_type == "next"


async def test_mailboxes_that_nobody_uses_are_forgotten(mesh: Mesh) -> None:
    tidy = mesh.service.mesh.mailboxes.maintenance.tidy
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob")
        await bob.answer(await bob.delivery())
        await mesh.send(recipient="absent", hold_for_recipient=True)
        await tidy()
        assert await mesh.redis.smembers("bxmesh:{work:agents}:mailboxes") == {b"bob", b"absent"}
    connections = mesh.service.mesh.connections
    await until(lambda: not connections.of("bob"))
    await mesh.redis.delete("bxmesh:{work:agents}:history:bob")

    async def is_forgotten() -> bool:
        await tidy()
        return await mesh.redis.smembers("bxmesh:{work:agents}:mailboxes") == {b"absent"}

    await until(is_forgotten)
    assert not await mesh.redis.keys("bxmesh:{work:agents}:*:bob*")


async def test_there_are_only_so_many_mailboxes(mesh: Mesh) -> None:
    # Some of them may be found to be unused meanwhile.
    names = map(str, range(120_000))
    await mesh.redis.sadd("bxmesh:{work:agents}:mailboxes", *names)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_MAILBOXES"):
        await mesh.send(recipient="one-more", hold_for_recipient=True)
    await mesh.send(recipient="119999", hold_for_recipient=True)
