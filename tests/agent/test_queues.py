"""Histories replayed, and the figures of mailboxes and work queues."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.agent.v1 import delivery_pb2, queue_pb2
from bxmesh.server.streams import QueueOptions, WorkQueue
from bxmesh.work.v1 import work_pb2
from tests.agent.mesh import Link, Mesh, agents, envelope, refused, sealed
from tests.agent.test_messages import seconds
from tests.processes import until
from tests.registry.mesh import ADMIN, ALICE

RETRY, DROP = delivery_pb2.VERDICT_RETRY, delivery_pb2.VERDICT_DROP


async def replay(mesh: Mesh, agent_id: str = "bob", **request: Any) -> tuple[int, str]:
    answer = await mesh.stub.ReplayMessages(
        queue_pb2.ReplayMessagesRequest(agent_id=agent_id, **request), metadata=ALICE
    )
    return answer.replayed, answer.next_entry_id


async def handle(mesh: Mesh, bob: Link, *types: str, **fields: Any) -> list[Any]:
    """Sends messages that bob acknowledges; returns their deliveries."""
    deliveries = []
    for name in types:
        await mesh.send(recipient="bob", message_type=name, **fields)
        deliveries.append(await bob.delivery())
        await bob.answer(deliveries[-1])
        await bob.credit()
    return deliveries


async def hear(bob: Link, count: int) -> list[str]:
    """Acknowledges deliveries; returns their types."""
    types = []
    for _ in range(count):
        delivery = await bob.delivery()
        types.append(delivery.envelope.message_type)
        await bob.answer(delivery)
        await bob.credit()
    return types


async def test_messages_are_replayed_from_an_entry_or_a_time(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        done = await handle(mesh, bob, "a", "b", "c", "b.x")
        entry = done[1].entry_id
        assert await replay(mesh, start_entry_id=entry) == (3, "")
        assert await hear(bob, 3) == ["b", "c", "b.x"]
        assert await replay(mesh, start_time=Timestamp(seconds=1)) == (4, "")
        assert await hear(bob, 4) == ["a", "b", "c", "b.x"]
        assert await replay(mesh, start_entry_id=entry, message_types=["b*"]) == (2, "")
        assert await hear(bob, 2) == ["b", "b.x"]
        assert await replay(mesh, start_time=Timestamp(seconds=1), message_types=["no"]) == (0, "")
        end = Timestamp()
        end.FromMilliseconds(int(done[2].entry_id.split("-")[0]))
        before = sum(each.entry_id.split("-")[0] < done[2].entry_id.split("-")[0] for each in done)
        assert await replay(mesh, start_time=Timestamp(seconds=1), end_time=end) == (before, "")
        await hear(bob, before)
        assert await replay(mesh, start_time=Timestamp(seconds=4_000_000_000)) == (0, "")
        # Replaying leaves the history as it is.
        assert await mesh.redis.xlen("bxmesh:{work:agents}:history:bob") == 4
        again = await handle(mesh, bob, "last")
        assert (again[0].attempt, again[0].max_attempts) == (1, 5)


async def test_a_replay_goes_on_where_its_limit_was(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        done = await handle(mesh, bob, *(f"t{n}" for n in range(7)))
        start, heard = done[0].entry_id, list[str]()
        while start:
            count, start = await replay(mesh, start_entry_id=start, limit=3)
            assert count <= 3
            heard += await hear(bob, count)
        assert heard == [f"t{n}" for n in range(7)]


async def test_entries_of_one_moment_are_told_apart(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    for priority in (1, 2, 3, 4):
        item = work_pb2.WorkItem(item_id=f"i{priority}", kind="message", max_attempts=5)
        item.payload.Pack(envelope("bob", f"p{priority}"))
        await mesh.redis.xadd(
            "bxmesh:{work:agents}:history:bob",
            {
                "entry": sealed(item),
                "from": f"bxmesh:{{work:agents}}:inbox:bob:{priority}",
                "id": "1000-1",
            },
        )
    start, types = "1000-1", list[str]()
    async with mesh.connected("bob", lease_id=lease) as bob:
        while start:
            count, start = await replay(mesh, start_entry_id=start, limit=1)
            assert count == 1
            types += await hear(bob, 1)
    assert sorted(types) == ["p1", "p2", "p3", "p4"]


async def test_a_repeated_replay_delivers_nothing_more(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await handle(mesh, bob, "a", "b", "c")
        request = {"start_time": Timestamp(seconds=1), "limit": 2, "request_id": "one"}
        answers = await asyncio.gather(*(replay(mesh, **request) for _ in range(4)))
        assert {count for count, _ in answers} == {2}
        (answer,) = await mesh.redis.keys("*:mutation:*:answer")
        await mesh.redis.delete(answer)
        # As if the server had died before it remembered the answer.
        assert await replay(mesh, **request) == answers[0]
        assert await hear(bob, 2) == ["a", "b"]
        await handle(mesh, bob, "next")


async def test_replays_are_tried_again_and_buried_like_others(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await handle(mesh, bob, "a", message_id="chosen")
        assert (await replay(mesh, start_time=Timestamp(seconds=1)))[0] == 1
        await bob.answer(await bob.delivery(), RETRY, retry_after=seconds(0.01))
        await bob.credit()
        delivery = await bob.delivery()
        assert delivery.attempt == 2
        assert (await bob.answer(delivery, DROP)).status.code == 0
    assert await mesh.redis.xlen("bxmesh:{work:agents}:dead") == 1


async def test_what_is_not_kept_is_said(redis: Redis, shared_valkey: str) -> None:
    async with agents(shared_valkey, message_history=3) as mesh, mesh.connected("bob") as bob:
        done = await handle(mesh, bob, *(f"t{n}" for n in range(5)))
        for start in (
            {"start_time": Timestamp(seconds=1)},
            {"start_entry_id": done[0].entry_id},
            {"start_entry_id": done[1].entry_id},
        ):
            with refused("OUT_OF_RANGE", "HISTORY_TRIMMED") as errors:
                await replay(mesh, **start)
            assert errors[0].metadata["oldest_entry_id"] == done[2].entry_id
        assert await replay(mesh, start_entry_id=done[2].entry_id) == (3, "")
        await hear(bob, 3)
        # The history has expired.
        await redis.delete("bxmesh:{work:agents}:history:bob")
        with refused("OUT_OF_RANGE", "HISTORY_TRIMMED"):
            await replay(mesh, start_entry_id=done[4].entry_id)
        later = await handle(mesh, bob, "later")
        with refused("OUT_OF_RANGE", "HISTORY_TRIMMED"):
            await replay(mesh, start_entry_id=done[4].entry_id)
        assert await replay(mesh, start_entry_id=later[0].entry_id) == (1, "")


async def test_what_was_acknowledged_out_of_turn_is_missed_too(
    redis: Redis, shared_valkey: str
) -> None:
    async with (
        agents(shared_valkey, message_history=2) as mesh,
        mesh.connected("bob", initial_credit=10) as bob,
    ):
        for number in range(4):
            await mesh.send(recipient="bob", message_type=f"t{number}")
        held = [await bob.delivery() for _ in range(4)]
        for which in (3, 2, 1, 0):
            await bob.answer(held[which])
        # The latest messages went first, so that only the earliest are kept.
        with refused("OUT_OF_RANGE", "HISTORY_TRIMMED"):
            await replay(mesh, start_entry_id=held[0].entry_id)


async def test_strange_starts(mesh: Mesh, redis: Redis, shared_valkey: str) -> None:
    with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
        await replay(mesh, "nobody", start_entry_id="1-1")
    await mesh.register("bob")
    for start in ("x", "1", "-", "1-1:5", "1-1-1", "+", "９-1"):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await replay(mesh, start_entry_id=start)
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await replay(mesh)
    for fields in ({"entry": b"\xff"}, {"x": "y"}, {"entry": b"", "from": "f", "id": "1"}):
        await redis.xadd("bxmesh:{work:agents}:history:bob", fields)
    assert await replay(mesh, start_entry_id="0-0") == (0, "")
    async with agents(shared_valkey, message_history=0) as other:
        async with other.connected("carol") as carol:
            await other.send(recipient="carol")
            await carol.answer(await carol.delivery())
        with refused("OUT_OF_RANGE", "HISTORY_TRIMMED"):
            await replay(other, "carol", start_entry_id="0-0")


async def test_a_full_mailbox_gets_no_more(redis: Redis, shared_valkey: str) -> None:
    async with (
        agents(shared_valkey, mailbox_capacity=2) as mesh,
        mesh.connected("bob", initial_credit=1) as bob,
    ):
        done = []
        for name in ("a", "b", "c"):
            await mesh.send(recipient="bob", message_type=name)
            done.append(await bob.delivery())
            await bob.answer(done[-1])
            if name != "c":
                await bob.credit()
        assert await replay(mesh, start_entry_id=done[0].entry_id) == (2, done[2].entry_id)
        with refused("RESOURCE_EXHAUSTED", "MAILBOX_FULL"):
            await replay(mesh, start_entry_id=done[2].entry_id)
        await bob.credit()
        assert await hear(bob, 2) == ["a", "b"]


# Figures


async def stats(mesh: Mesh, **request: Any) -> queue_pb2.GetQueueStatsResponse:
    answer: queue_pb2.GetQueueStatsResponse = await mesh.stub.GetQueueStats(
        queue_pb2.GetQueueStatsRequest(**request), metadata=ADMIN
    )
    return answer


async def of(mesh: Mesh, agent_id: str) -> queue_pb2.QueueStats:
    (found,) = (await stats(mesh, agent_id=agent_id)).queues
    return found


async def test_the_figures_of_a_mailbox(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    empty = await of(mesh, "bob")
    assert (empty.queue, empty.capacity, empty.connections) == ("agent/bob", 10_000, 0)
    assert dict(empty.waiting) == {
        f"PRIORITY_{n}": 0 for n in ("LOW", "MEDIUM", "HIGH", "CRITICAL")
    }
    for priority, count in ((1, 1), (2, 2), (4, 3)):
        for _ in range(count):
            await mesh.send(recipient="bob", priority=priority)
    full = await of(mesh, "bob")
    assert dict(full.waiting) == {
        "PRIORITY_LOW": 1,
        "PRIORITY_MEDIUM": 2,
        "PRIORITY_HIGH": 0,
        "PRIORITY_CRITICAL": 3,
    }
    assert full.oldest_age.ToNanoseconds() >= 0
    async with mesh.connected("bob", lease_id=lease, initial_credit=4) as bob:
        held = [await bob.delivery() for _ in range(4)]
        taken = await of(mesh, "bob")
        assert (sum(taken.waiting.values()), taken.in_flight, taken.connections) == (2, 4, 1)
        assert taken.delivery_rate == pytest.approx(4 / 60)
        await bob.answer(held[0])
        await bob.answer(held[1], DROP)
        await bob.answer(held[2], RETRY, retry_after=seconds(600))
        later = await of(mesh, "bob")
        assert (later.in_flight, later.delayed, later.dead_letters) == (1, 1, 1)
        assert (later.acknowledged, later.redelivered, later.expired) == (1, 0, 0)
        await bob.answer(held[3], RETRY, retry_after=seconds(0.01))
        await bob.credit(3)
        again = [await bob.delivery() for _ in range(3)]
        assert max(each.attempt for each in again) == 2
        now = await of(mesh, "bob")
        assert (now.delayed, now.redelivered, now.in_flight) == (1, 1, 3)
    await mesh.stub.PurgeDeadLetters(
        queue_pb2.PurgeDeadLettersRequest(filter=queue_pb2.DeadLetterFilter(agent_id="bob")),
        metadata=ADMIN,
    )
    assert (await of(mesh, "bob")).dead_letters == 0


async def test_dead_letters_are_counted_by_agent(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob, mesh.connected("carol") as carol:
        for name, link, count in (("bob", bob, 2), ("carol", carol, 1)):
            for _ in range(count):
                await mesh.send(recipient=name)
                await link.answer(await link.delivery(), DROP)
                await link.credit()
        assert [(await of(mesh, name)).dead_letters for name in ("bob", "carol")] == [2, 1]
        await mesh.stub.ReplayDeadLetters(
            queue_pb2.ReplayDeadLettersRequest(
                filter=queue_pb2.DeadLetterFilter(agent_id="bob"), limit=1
            ),
            metadata=ADMIN,
        )
        assert [(await of(mesh, name)).dead_letters for name in ("bob", "carol")] == [1, 1]
    # Letters that are too old are thrown away without a word.
    await mesh.redis.xtrim("bxmesh:{work:agents}:dead", maxlen=0, approximate=False)
    assert (await of(mesh, "carol")).dead_letters == 0


async def test_expired_messages_are_counted(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    queue = mesh.service.mesh.mailboxes.queue
    item = queue.new_item("message", envelope("bob"))
    item.deadline.FromSeconds(1)
    entry = sealed(item)
    await mesh.send(recipient="bob", message_type="lasting")
    await mesh.redis.xadd(queue.keys.inbox("bob", 2), {"entry": entry, "deliveries": 0})
    async with mesh.connected("bob", lease_id=lease, initial_credit=2) as bob:
        assert (await bob.delivery()).envelope.message_type == "lasting"
        await until(lambda: _expired(mesh))


async def _expired(mesh: Mesh) -> int:
    return (await of(mesh, "bob")).expired


async def test_pages_of_queues(mesh: Mesh, redis: Redis) -> None:
    queue = WorkQueue(redis, QueueOptions("geometry", max_depth=7))
    service: Any = mesh.service
    service._mesh = dataclasses.replace(mesh.service.mesh, work_queues=(queue,))
    await queue.enqueue("geometry.gradients", StringValue(value="x"))
    for name in ("b", "a", "c"):
        await mesh.send(recipient=name, hold_for_recipient=True)
    async with mesh.connected("idle"):
        whole = (await stats(mesh)).queues
    names = [each.queue for each in whole]
    assert names == ["agent/a", "agent/b", "agent/c", "agent/idle", "capability/geometry"]
    assert (whole[-1].capacity, whole[-1].waiting["PRIORITY_MEDIUM"]) == (7, 1)
    found, token = list[str](), ""
    while True:
        page = await stats(mesh, page_size=2, page_token=token)
        assert len(page.queues) <= 2
        found += [each.queue for each in page.queues]
        token = page.next_page_token
        if not token:
            break
    assert found == names
    token = (await stats(mesh, page_size=2)).next_page_token
    for request in ({"page_token": "x"}, {"page_token": token, "agent_id": "a"}):
        with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
            await stats(mesh, **request)
    for capability in ("geometry", "geometry.gradients"):
        (one,) = (await stats(mesh, capability=capability)).queues
        assert one.queue == "capability/geometry"
    for capability in ("geometr", "geometrys", "validation"):
        with refused("NOT_FOUND", "QUEUE_NOT_FOUND"):
            await stats(mesh, capability=capability)
    with refused("NOT_FOUND", "AGENT_NOT_FOUND"):
        await stats(mesh, agent_id="nobody")


async def test_only_the_mailboxes_of_a_page_are_looked_at(mesh: Mesh, redis: Redis) -> None:
    names = [f"agent-{n:05}" for n in range(10_000)]
    # They are in use, or some would be forgotten meanwhile.
    pipeline = redis.pipeline(transaction=False)
    pipeline.sadd("bxmesh:{work:agents}:mailboxes", *names)
    for name in names:
        pipeline.sadd(f"bxmesh:{{work:agents}}:attached:{name}", mesh.service.mesh.bells.channel)
    await pipeline.execute()
    before: Any = await redis.info("commandstats")
    page = await stats(mesh, page_size=10)
    after: Any = await redis.info("commandstats")
    assert [each.queue for each in page.queues] == [f"agent/agent-{n:05}" for n in range(10)]
    calls = {name: figures["calls"] for name, figures in before.items()}
    assert after["cmdstat_hlen"]["calls"] - calls.get("cmdstat_hlen", 0) == 10
