"""What agents, callers and whoever writes to Redis may do wrong, and what others notice of it."""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from bxmesh.agent.v1 import delivery_pb2, message_pb2, queue_pb2, task_pb2
from bxmesh.client.errors import from_status
from bxmesh.server.errors import unavailable
from bxmesh.work.v1 import work_pb2
from tests.agent.mesh import ALICE, Mesh, envelope, refused, sealed
from tests.processes import until
from tests.registry.mesh import ADMIN, BOB

ROOT = "bxmesh:{work:agents}"
# Many times what a connection settles at a time, and what the streams hold.
ANSWERS = 4_000


async def _task_for(mesh: Mesh, agent_id: str) -> Any:
    spec = task_pb2.TaskSpec(task_type="test.task", agent_id=agent_id)
    answer = await mesh.stub.AssignTask(task_pb2.AssignTaskRequest(spec=spec), metadata=ALICE)
    return answer.task


async def _is_reached(mesh: Mesh, agent_id: str) -> bool:
    answer = await mesh.send(recipient=agent_id, delivery_mode=message_pb2.DELIVERY_MODE_DIRECT)
    return bool(answer.receivers)


def _hostile_status(detail: str) -> status_pb2.Status:
    status = status_pb2.Status(code=13, message="It failed.")
    if detail == "garbage":
        name = error_details_pb2.ErrorInfo.DESCRIPTOR.full_name
        status.details.add(type_url=f"type.googleapis.com/{name}", value=b"\xff\xff\xff")
    else:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = 1 << 62 if detail == "for ever" else -(1 << 62)
        status.details.add().Pack(retry)
    return status


async def test_a_connection_that_is_taken_up_again_is_reached(mesh: Mesh) -> None:
    # The stream of before may be open still: nobody tells a server that a network is gone.
    lease = await mesh.register("bob")
    async with (
        mesh.connected("bob", lease_id=lease, connection_id="c") as old,
        mesh.connected("bob", lease_id=lease, connection_id="c"),
    ):
        with refused("ABORTED", "CONNECTION_REPLACED"):
            await old.ended()
        await mesh.service.mesh.connections.all_gone(0.2)
        assert await _is_reached(mesh, "bob")
        assert await mesh.redis.hlen(f"{ROOT}:connections:bob") == 1


async def test_whoever_comes_while_another_leaves_is_reached(mesh: Mesh, monkeypatch: Any) -> None:
    lease = await mesh.register("bob")
    mailboxes = mesh.service.mesh.mailboxes
    acknowledge, go_on = mailboxes.acknowledge, asyncio.Event()

    async def slowly(*args: Any) -> bool:
        await go_on.wait()
        return await acknowledge(*args)

    monkeypatch.setattr(mailboxes, "acknowledge", slowly)
    await mesh.send(recipient="bob")
    async with mesh.connected("bob", lease_id=lease) as old:
        delivery = await old.delivery()
        answer = delivery_pb2.Answer(
            delivery_id=delivery.delivery_id, verdict=delivery_pb2.VERDICT_ACK
        )
        await old.say(answer=answer)
        (connection,) = mesh.service.mesh.connections.of("bob")
        await until(lambda: bool(connection._settling))
    await until(lambda: not mesh.service.mesh.connections.of("bob"))
    async with mesh.connected("bob", lease_id=lease):
        go_on.set()
        await until(lambda: not connection._settling)
        await mesh.service.mesh.connections.all_gone(0.2)
        assert await _is_reached(mesh, "bob")


async def test_redis_being_away_is_not_the_fault_of_a_delivery(
    mesh: Mesh, monkeypatch: Any
) -> None:
    tasks, refusals = mesh.service.mesh.tasks, 2
    deliverable = tasks.deliverable

    async def away(*args: Any) -> Any:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise unavailable("Redis cannot be reached.", reason="REDIS_UNAVAILABLE")
        return await deliverable(*args)

    monkeypatch.setattr(tasks, "deliverable", away)
    async with mesh.connected("bob") as bob:
        task = await _task_for(mesh, "bob")
        delivery = await bob.delivery()
        assert delivery.task.task_id == task.task_id
        assert (delivery.attempt, delivery.task.attempts) == (1, 1)
    assert await mesh.redis.xlen(f"{ROOT}:dead") == 0


async def test_an_entry_that_holds_no_task_is_a_dead_letter(mesh: Mesh) -> None:
    name = work_pb2.TaskDelivery.DESCRIPTOR.full_name
    item = work_pb2.WorkItem(item_id="x", kind="task", max_attempts=100_000)
    item.payload.CopyFrom(AnyMessage(type_url=f"type.googleapis.com/{name}", value=b"\xff\xff\xff"))
    stream = f"{ROOT}:inbox:bob:4"
    await mesh.redis.xgroup_create(stream, "workers", "0", mkstream=True)
    await mesh.redis.xadd(stream, {"entry": sealed(item), "deliveries": 0})
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob")
        assert (await bob.delivery()).HasField("envelope")
    assert await mesh.redis.xlen(f"{ROOT}:dead") == 1


@pytest.mark.parametrize("detail", ["garbage", "for ever", "long ago"])
async def test_errors_with_hostile_details(mesh: Mesh, detail: str) -> None:
    error = _hostile_status(detail)
    async with mesh.connected("bob", initial_credit=9) as bob:
        for verdict in (delivery_pb2.VERDICT_RETRY, delivery_pb2.VERDICT_DROP):
            await mesh.send(recipient="bob", message_type=f"test.{verdict}")
            settled = await bob.answer(await bob.delivery(), verdict, error=error)
            assert settled.status.code == 0
    async with mesh.connected("worker") as worker:
        task = await _task_for(mesh, "worker")
        delivery = await worker.delivery()
        await mesh.stub.ReportTask(
            task_pb2.ReportTaskRequest(
                task_id=task.task_id, delivery_id=delivery.delivery_id, error=error
            ),
            metadata=ALICE,
        )
        answer = await mesh.stub.GetTask(
            task_pb2.GetTaskRequest(task_id=task.task_id), metadata=ALICE
        )
        assert from_status(answer.task.error).code.name == "INTERNAL"


async def test_an_error_of_any_size_leaves_dead_letters_readable(mesh: Mesh) -> None:
    info = error_details_pb2.ErrorInfo(
        reason="R" * 1_000_000, metadata={str(i) * 200: "x" * 500 for i in range(2000)}
    )
    error = status_pb2.Status(code=13, message="x" * 500_000)
    error.details.add().Pack(info)
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob", json='"' + "x" * 1_000_000 + '"')
        await bob.answer(await bob.delivery(), delivery_pb2.VERDICT_DROP, error=error)
    answer = await mesh.stub.ListDeadLetters(queue_pb2.ListDeadLettersRequest(), metadata=ALICE)
    (letter,) = answer.dead_letters
    assert letter.error.ByteSize() < 8 << 10


async def test_a_reply_that_is_too_large_is_not_sent(mesh: Mesh) -> None:
    async with mesh.connected("alice", initial_credit=1), mesh.connected("bob") as bob:
        await mesh.send(recipient="bob", sender="alice")
        reply = message_pb2.Envelope(message_type="test.reply")
        reply.payload.protobuf.value = b"x" * (2 << 20)
        settled = await bob.answer(await bob.delivery(), reply=reply)
        assert "PAYLOAD_TOO_LARGE" in str(settled.status)
        assert await mesh.redis.xlen(f"{ROOT}:inbox:alice:2") == 0
        # It was handled, and no repetition would make the answer smaller.
        assert await mesh.redis.zcard(f"{ROOT}:delayed") == 0


async def test_nothing_is_handed_over_without_credit(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with (
        mesh.connected("bob", lease_id=lease, message_types=["a"], initial_credit=99) as one,
        mesh.connected("bob", lease_id=lease, message_types=["b"], initial_credit=2) as two,
    ):
        for number in range(5):
            await mesh.send(recipient="bob", message_type="b", json=str(number))
        await mesh.send(recipient="bob", message_type="a")
        assert (await one.delivery()).envelope.message_type == "a"
        got = [await two.delivery() for _ in range(2)]
        (other,) = [c for c in mesh.service.mesh.connections.of("bob") if c.handles("b")]
        assert len(other._held) == 2
        # What there was no room for comes when there is, and was no attempt.
        await two.credit(9)
        got += [await two.delivery() for _ in range(3)]
        assert sorted(d.envelope.payload.json.json for d in got) == list("01234")
        assert {d.attempt for d in got} == {1}


async def test_whoever_does_not_read_holds_nobody_else_up(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with (
        mesh.connected("bob", lease_id=lease, message_types=["a"], initial_credit=99) as one,
        mesh.connected("bob", lease_id=lease, message_types=["b"], initial_credit=99),
    ):
        for _ in range(20):
            await mesh.send(
                recipient="bob", message_type="b", json='"' + "x" * 900_000 + '"', priority=3
            )
        await mesh.send(recipient="bob", message_type="a")
        assert (await one.delivery()).envelope.message_type == "a"


async def test_answers_that_nobody_reads_wait_with_the_client(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        (connection,) = mesh.service.mesh.connections.of("bob")
        answer = delivery_pb2.Answer(delivery_id="n" * 128, verdict=delivery_pb2.VERDICT_ACK)
        answer.reply.CopyFrom(envelope("x"))
        answer.reply.payload.json.json = '"' + "x" * 1000 + '"'

        async def flood() -> None:
            for _ in range(ANSWERS):
                await bob.say(answer=answer)

        flooding = asyncio.create_task(flood())
        settled = 0
        async with asyncio.timeout(60):
            await asyncio.wait([flooding], timeout=3.0)
            assert len(connection._settling) <= 256
            # Whoever reads goes on.
            while settled < ANSWERS:
                settled += (await bob.hear()).HasField("settled")
        await flooding


async def test_a_broadcast_is_copied_for_some_at_a_time(mesh: Mesh) -> None:
    for first in range(0, 400, 50):
        await asyncio.gather(*(mesh.register(f"agent-{first + n}") for n in range(50)))
    message = envelope(json='"' + "x" * 1_000_000 + '"')
    request = message_pb2.BroadcastMessageRequest(
        envelope=message, delivery_mode=message_pb2.DELIVERY_MODE_DIRECT
    )
    before = _peak_kib()
    answer = await mesh.stub.BroadcastMessage(request, metadata=ALICE)
    assert answer.recipients == 400
    assert _peak_kib() - before < 300 << 10


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def test_what_a_killed_server_left_behind_goes(mesh: Mesh) -> None:
    mailboxes = mesh.service.mesh.mailboxes
    await mailboxes.attach("bob", "c", "lease", "bxmesh:servers:killed")
    await mailboxes.take("bob", "c", 1, "bxmesh:servers:killed")

    async def is_forgotten() -> bool:
        await mailboxes.maintenance.tidy()
        return not await mesh.redis.exists(f"{ROOT}:mailboxes")

    await until(is_forgotten)
    assert not await mesh.redis.keys(f"{ROOT}:*bob*")


async def test_whoever_waits_is_reached_though_redis_has_lost_it(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=9) as bob:
        await mesh.redis.delete(f"{ROOT}:attached:bob")
        await mesh.send(recipient="bob")
        await bob.delivery()
        await until(lambda: _is_reached(mesh, "bob"))


async def test_connections_that_are_gone_leave_nothing_for_good(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    for _ in range(20):
        await mesh.send(recipient="bob")
        async with mesh.connected("bob", lease_id=lease) as bob:
            await bob.delivery()
        await until(lambda: not mesh.service.mesh.connections.staying("bob"))
        await mesh.service.mesh.connections.all_gone(5)
    stream = f"{ROOT}:inbox:bob:2"
    # What they hold goes back when its lease ends, and somebody else takes it.
    async with mesh.connected("bob", lease_id=lease, initial_credit=99) as bob:
        for delivery in [await bob.delivery() for _ in range(20)]:
            await bob.answer(delivery)
    await mesh.service.mesh.connections.all_gone(5)
    async with mesh.connected("bob", lease_id=lease):
        assert await mesh.redis.hlen(f"{ROOT}:connections:bob") == 1
        assert len(await mesh.redis.xinfo_consumers(stream, "workers")) <= 1


def _longer(things: list[Any], number: int) -> bool:
    return len(things) > number


async def test_what_is_held_is_bounded_in_bytes(mesh: Mesh, monkeypatch: Any) -> None:
    monkeypatch.setattr("bxmesh.server.agent.connection._MOST_HELD_BYTES", 1 << 20)
    payload, got = '"' + "x" * 100_000 + '"', list[Any]()
    async with mesh.connected("bob", initial_credit=10_000) as bob:
        (connection,) = mesh.service.mesh.connections.of("bob")

        async def read() -> None:
            while len(got) < 200:
                response = await bob.hear()
                if response.HasField("delivery"):
                    got.append(response.delivery)

        reading = asyncio.create_task(read())
        for _ in range(10):
            await asyncio.gather(*(mesh.send(recipient="bob", json=payload) for _ in range(20)))
        await until(lambda: len(got) >= 10)
        await asyncio.sleep(0.5)
        # What it may hold, and at most one page.
        assert len(connection._held) <= 11 + 64
        answered = 0
        while answered < 200:
            await until(partial(_longer, got, answered))
            answer = delivery_pb2.Answer(
                delivery_id=got[answered].delivery_id, verdict=delivery_pb2.VERDICT_ACK
            )
            await bob.say(answer=answer)
            answered += 1
        await reading


async def test_an_agent_has_only_so_many_connections(mesh: Mesh) -> None:
    lease = await mesh.register("bob")
    async with AsyncExitStack() as stack:
        for _ in range(128):
            await stack.enter_async_context(mesh.connected("bob", lease_id=lease))
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_CONNECTIONS"):
            await stack.enter_async_context(mesh.connected("bob", lease_id=lease))


async def test_tasks_go_on_after_redis_held_nonsense(mesh: Mesh) -> None:
    spec = task_pb2.TaskSpec(task_type="test.task", required_capabilities=["testing"])
    request = task_pb2.AssignTaskRequest(spec=spec, wait_for_agent=True)
    await mesh.redis.hset(f"{ROOT}:task-load", b"\xff\xfe", b"\xff")
    task = (await mesh.stub.AssignTask(request, metadata=ALICE)).task
    await asyncio.sleep(0.3)
    await mesh.redis.delete(f"{ROOT}:task-load")
    lease = await mesh.register("bob", "testing")
    async with mesh.connected("bob", lease_id=lease) as bob:
        assert (await bob.delivery()).task.task_id == task.task_id


@pytest.mark.parametrize("seconds", [1 << 62, -(1 << 62)])
async def test_times_that_are_none(mesh: Mesh, seconds: int) -> None:
    request = task_pb2.ListTasksRequest()
    request.start_time.seconds, request.end_time.seconds = -seconds, seconds
    request.end_time.nanos = -1
    with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
        await mesh.stub.ListTasks(request, metadata=ALICE)


async def test_only_its_owner_has_an_agent_handle_messages_again(mesh: Mesh) -> None:
    request = queue_pb2.ReplayMessagesRequest(agent_id="bob", start_entry_id="0-0")
    async with mesh.connected("bob") as bob:
        await mesh.send(recipient="bob")
        await bob.answer(await bob.delivery())
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await mesh.stub.ReplayMessages(request, metadata=BOB)
        for metadata in (ALICE, ADMIN):
            answer = await mesh.stub.ReplayMessages(request, metadata=metadata)
            assert answer.replayed == 1


async def test_mailboxes_are_forgotten_faster_than_agents_come_and_go(mesh: Mesh) -> None:
    await mesh.redis.sadd(f"{ROOT}:mailboxes", *(f"agent-{number}" for number in range(3000)))
    maintenance = mesh.service.mesh.mailboxes.maintenance
    for _ in range(2):
        await maintenance.tidy()
    assert await mesh.redis.scard(f"{ROOT}:mailboxes") == 0
