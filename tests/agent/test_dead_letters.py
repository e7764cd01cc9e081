"""Dead letters: listed in pages, replayed and purged, of mailboxes, tasks and work queues."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.agent.v1 import delivery_pb2, queue_pb2, task_pb2
from bxmesh.server.errors import MeshError, invalid_argument, unavailable
from bxmesh.server.streams import QueueOptions, WorkQueue
from bxmesh.work.v1 import work_pb2
from tests.agent.mesh import Mesh, envelope, refused, sealed
from tests.registry.mesh import ADMIN, ALICE, OPERATOR

DROP = delivery_pb2.VERDICT_DROP
# What is older than a month is thrown away.
NOW = int(time.time()) - 1000
DEAD = "bxmesh:{work:agents}:dead"
Filter = queue_pb2.DeadLetterFilter


@pytest.fixture
async def queue(mesh: Mesh, redis: Redis) -> WorkQueue:
    """A work queue that the server shows beside the mailboxes."""
    queue = WorkQueue(redis, QueueOptions("geometry"))
    service: Any = mesh.service
    service._mesh = dataclasses.replace(mesh.service.mesh, work_queues=(queue,))
    return queue


async def page(mesh: Mesh, **request: Any) -> queue_pb2.ListDeadLettersResponse:
    answer: queue_pb2.ListDeadLettersResponse = await mesh.stub.ListDeadLetters(
        queue_pb2.ListDeadLettersRequest(**request), metadata=ADMIN
    )
    return answer


async def pages(mesh: Mesh, **request: Any) -> list[queue_pb2.DeadLetter]:
    """All letters, over all pages."""
    found: list[queue_pb2.DeadLetter] = []
    token = ""
    while True:
        answer = await page(mesh, page_token=token, **request)
        found += answer.dead_letters
        token = answer.next_page_token
        if not token:
            return found


async def replay(mesh: Mesh, metadata: Any = ADMIN, **request: Any) -> tuple[int, int]:
    answer = await mesh.stub.ReplayDeadLetters(
        queue_pb2.ReplayDeadLettersRequest(**request), metadata=metadata
    )
    return answer.replayed, answer.remaining


async def purge(mesh: Mesh, **request: Any) -> int:
    answer = await mesh.stub.PurgeDeadLetters(
        queue_pb2.PurgeDeadLettersRequest(**request), metadata=ADMIN
    )
    return int(answer.purged)


def letter(
    agent_id: str = "bob",
    message_type: str = "test.message",
    *,
    reason: str = "NO",
    seconds: int = 0,
    payload: str = "1",
    origin: str = "",
) -> work_pb2.DeadLetter:
    item = work_pb2.WorkItem(item_id=f"{agent_id}-{message_type}", kind="message", max_attempts=5)
    item.payload.Pack(envelope(agent_id, message_type, payload))
    found = work_pb2.DeadLetter(
        entry=sealed(item, attempts=4),
        attempts=5,
        origin_stream=origin or f"bxmesh:{{work:agents}}:inbox:{agent_id}:2",
        origin_entry_id="1-1",
        worker_id="connection",
    )
    found.error.CopyFrom(unavailable("No.", reason=reason).to_status())
    if seconds:
        found.last_time.FromSeconds(seconds)
    else:
        found.last_time.GetCurrentTime()
    return found


async def bury(mesh: Mesh, *letters: work_pb2.DeadLetter, first: int = 0) -> None:
    """Buries letters, the first under the id <first>-1 if one is given."""
    pipeline = mesh.redis.pipeline(transaction=False)
    for number, each in enumerate(letters):
        pipeline.xadd(
            DEAD,
            {"letter": each.SerializeToString(), "from": each.origin_stream},
            id=f"{first + number}-1" if first else "*",
        )
    await pipeline.execute()


async def drop(mesh: Mesh, bob: Any, message_type: str, reason: str = "NEVER") -> None:
    await mesh.send(recipient="bob", message_type=message_type)
    error = invalid_argument("payload", "cannot be read", reason=reason).to_status()
    await bob.answer(await bob.delivery(), DROP, error=error)
    await bob.credit()


async def test_what_an_agent_drops_is_listed_and_replayed(mesh: Mesh) -> None:
    async with mesh.connected("bob") as bob:
        await drop(mesh, bob, "poison.one")
        await drop(mesh, bob, "poison.two", reason="OTHER")
        newest, oldest = await pages(mesh)
        assert newest.envelope.message_type == "poison.two"
        assert oldest.envelope.sender == "alice"
        assert (oldest.agent_id, oldest.origin, oldest.attempts) == ("bob", "agent/bob", 1)
        assert MeshError.from_status(oldest.error).reason == "NEVER"
        assert oldest.dead_letter_id.startswith("agents:")
        assert oldest.last_time.seconds >= oldest.first_time.seconds > 0
        assert [
            each.envelope.message_type
            for each in await pages(mesh, filter=Filter(type="poison.one"))
        ] == ["poison.one"]
        assert await replay(mesh, filter=Filter(dead_letter_ids=[oldest.dead_letter_id])) == (1, 0)
        again = await bob.delivery()
        assert (again.envelope.message_type, again.attempt) == ("poison.one", 1)
        assert (await bob.answer(again)).status.code == 0
        assert await pages(mesh) == [newest]
    assert await purge(mesh, filter=Filter(agent_id="bob")) == 1
    assert await pages(mesh) == []


@pytest.mark.parametrize(
    ("wanted", "types"),
    [
        ({"agent_id": "bob"}, "abc"),
        ({"agent_id": "carol"}, "d"),
        ({"agent_id": "nobody"}, ""),
        ({"type": "b"}, "b"),
        ({"reason": "THEN"}, "cd"),
        ({"reason": "THEN", "agent_id": "bob"}, "c"),
        ({"start_time": Timestamp(seconds=NOW + 2)}, "bcd"),
        ({"end_time": Timestamp(seconds=NOW + 2)}, "a"),
        ({"start_time": Timestamp(seconds=NOW + 2), "end_time": Timestamp(seconds=NOW + 3)}, "b"),
        (
            {"start_time": Timestamp(seconds=-5), "end_time": Timestamp(seconds=253402300799)},
            "abcd",
        ),
        (
            {"dead_letter_ids": [f"agents:{NOW + 3}000-1", f"agents:{NOW + 1}000-1", "agents:9-9"]},
            "ac",
        ),
        ({"dead_letter_ids": [f"agents:{NOW + 3}000-1"], "agent_id": "carol"}, ""),
        (
            {
                "dead_letter_ids": [
                    "x",
                    "agents:",
                    "agents:1",
                    f"geometry:{NOW + 1}000-1",
                    f"{NOW + 1}000-1",
                ]
            },
            "",
        ),
        ({"capability": "geometry"}, ""),
    ],
)
async def test_filters(mesh: Mesh, wanted: dict[str, Any], types: str) -> None:
    for number, (agent, name, reason) in enumerate(
        (("bob", "a", "NO"), ("bob", "b", "NO"), ("bob", "c", "THEN"), ("carol", "d", "THEN"))
    ):
        at = NOW + 1 + number
        await bury(mesh, letter(agent, name, reason=reason, seconds=at), first=at * 1000)
    wanted_filter = Filter(**wanted)
    found = await pages(mesh, filter=wanted_filter)
    assert "".join(each.envelope.message_type for each in reversed(found)) == types
    one_by_one = await pages(mesh, filter=wanted_filter, page_size=1)
    assert one_by_one == found
    assert await purge(mesh, filter=wanted_filter) == len(types)
    assert len(await pages(mesh)) == 4 - len(types)


async def test_tokens_belong_to_their_filter(mesh: Mesh) -> None:
    await bury(mesh, *(letter() for _ in range(3)))
    token = (await page(mesh, page_size=1)).next_page_token
    same = Filter(dead_letter_ids=["agents:2-1", "agents:1-1"])
    assert (await page(mesh, page_size=1, page_token=token)).next_page_token
    for other in (
        {"page_token": token, "filter": Filter(agent_id="bob")},
        {"page_token": "nonsense"},
        {"page_token": token + "0x"},
        {"page_token": token.replace("agents", "elsewhere")},
    ):
        with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
            await page(mesh, **other)
    assert await pages(mesh, filter=same) == []
    for size in (-1, 1001):
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await page(mesh, page_size=size)


async def test_what_comes_between_pages_disturbs_nothing(mesh: Mesh) -> None:
    await bury(mesh, *(letter(message_type=f"t{n}") for n in range(4)))
    first = await page(mesh, page_size=2)
    await bury(mesh, letter(message_type="later"))
    await purge(mesh, filter=Filter(dead_letter_ids=[first.dead_letters[1].dead_letter_id]))
    second = await page(mesh, page_size=2, page_token=first.next_page_token)
    found = [each.envelope.message_type for each in (*first.dead_letters, *second.dead_letters)]
    assert found == ["t3", "t2", "t1", "t0"]
    assert second.next_page_token == ""


async def test_what_cannot_be_read(mesh: Mesh) -> None:
    nonsense = work_pb2.DeadLetter(entry=b"\xff" * (100 << 10))
    no_message = letter()
    entry = work_pb2.WorkEntry.FromString(no_message.entry)
    entry.item.payload.Pack(StringValue(value="something else"))
    no_message.entry = entry.SerializeToString()
    await bury(mesh, nonsense, no_message, letter(origin="bxmesh:{work:agents}:shared"))
    await mesh.redis.xadd(DEAD, {"letter": b"\xff\xff"})
    await mesh.redis.xadd(DEAD, {"what": "else"})
    found = await pages(mesh)
    assert [each.WhichOneof("content") for each in found] == ["unreadable"] * 5
    assert max(len(each.unreadable) for each in found) == 64 << 10
    assert all(each.HasField("last_time") for each in found)
    # They stay where they are until they are purged.
    everything = Filter(end_time=Timestamp(seconds=253402300799))
    assert await replay(mesh, filter=everything) == (0, 5)
    assert await purge(mesh, filter=Filter(reason="UNREADABLE")) == 2
    assert await purge(mesh, filter=everything) == 3


async def test_nothing_is_done_to_everything_by_mistake(mesh: Mesh) -> None:
    await bury(mesh, letter())
    for call in (replay, purge):
        with refused("INVALID_ARGUMENT", "FILTER_EMPTY"):
            await call(mesh, filter=Filter())
        with refused("INVALID_ARGUMENT", "INVALID_ARGUMENT"):
            await call(mesh)
    assert len(await pages(mesh)) == 1


async def test_a_replay_keeps_to_its_limit_and_is_repeated_safely(mesh: Mesh) -> None:
    await mesh.register("bob")
    await bury(mesh, *(letter(message_type=f"t{n}") for n in range(10)))
    request = {"filter": Filter(agent_id="bob"), "limit": 4, "request_id": "one"}
    at_once = await asyncio.gather(*(replay(mesh, **request) for _ in range(5)))
    assert {answer[0] for answer in at_once} == {4}
    assert await replay(mesh, **request) == at_once[0]
    assert await mesh.redis.xlen("bxmesh:{work:agents}:inbox:bob:2") == 4
    assert len(await pages(mesh)) == 6
    # The oldest came first, and the id means what it means to its caller only.
    assert (await pages(mesh))[-1].envelope.message_type == "t4"
    assert await replay(mesh, metadata=OPERATOR, **request) == (4, 2)
    assert await replay(mesh, filter=Filter(agent_id="bob")) == (2, 0)
    async with mesh.connected("bob", initial_credit=20) as bob:
        types = [(await bob.delivery()).envelope.message_type for _ in range(10)]
    assert types == [f"t{n}" for n in range(10)]


async def test_a_replay_that_broke_off_goes_on(mesh: Mesh) -> None:
    await bury(mesh, *(letter(message_type=f"t{n}") for n in range(6)))
    request = {"filter": Filter(agent_id="bob"), "limit": 4, "request_id": "one"}
    await replay(mesh, **request)
    # As if the server had died before it remembered the answer.
    (answer,) = await mesh.redis.keys("*:mutation:*:answer")
    await mesh.redis.delete(answer)
    assert await replay(mesh, **request) == (4, 2)
    assert len(await pages(mesh)) == 2
    assert await purge(mesh, filter=Filter(agent_id="bob"), request_id="two") == 2
    await bury(mesh, letter())
    assert await purge(mesh, filter=Filter(agent_id="bob"), request_id="two") == 2
    assert len(await pages(mesh)) == 1


async def test_a_full_mailbox_takes_no_replays(mesh: Mesh) -> None:
    options = mesh.service.mesh.mailboxes.queue.options
    object.__setattr__(options, "max_depth", 3)
    await bury(mesh, *(letter() for _ in range(5)), letter("carol"))
    assert await replay(mesh, filter=Filter(reason="NO")) == (4, 2)


async def test_replays_to_an_agent_that_fails_again_end(mesh: Mesh) -> None:
    async with mesh.connected("bob", initial_credit=100) as bob:
        await drop(mesh, bob, "poison")
        for _ in range(3):
            assert await replay(mesh, filter=Filter(agent_id="bob")) == (1, 0)
            await bob.answer(await bob.delivery(), DROP)
    assert len(await pages(mesh)) == 1


async def test_letters_of_work_queues(mesh: Mesh, queue: WorkQueue) -> None:
    item = queue.new_item("geometry.gradients", StringValue(value="x"), identity="carol")
    work = work_pb2.DeadLetter(
        entry=work_pb2.WorkEntry(item=item).SerializeToString(),
        attempts=3,
        origin_stream=queue.keys.lane("worker-1"),
        worker_id="worker-1",
    )
    work.error.CopyFrom(unavailable("No.", reason="NO").to_status())
    work.last_time.GetCurrentTime()
    await mesh.redis.xadd(queue.keys.dead, {"letter": work.SerializeToString()}, id=f"{NOW}000-1")
    await bury(mesh, letter(message_type="same"), letter(message_type="later"), first=NOW * 1000)
    found = await pages(mesh)
    assert await pages(mesh, page_size=1) == found
    assert [each.dead_letter_id for each in found] == [
        f"agents:{NOW}001-1",
        f"geometry:{NOW}000-1",
        f"agents:{NOW}000-1",
    ]
    shown = found[1]
    assert (shown.origin, shown.agent_id) == ("capability/geometry.gradients", "worker-1")
    assert (shown.task.spec.task_type, shown.task.owner) == ("geometry.gradients", "carol")
    for capability in ("geometry", "geometry.gradients"):
        wanted = Filter(capability=capability)
        assert [each.dead_letter_id for each in await pages(mesh, filter=wanted)] == [
            f"geometry:{NOW}000-1"
        ]
    assert await pages(mesh, filter=Filter(capability="geometry.model")) == []
    assert await pages(mesh, filter=Filter(capability="geometry", agent_id="bob")) == []
    assert await replay(mesh, filter=Filter(type="geometry.gradients"), request_id="r") == (1, 0)
    assert await mesh.redis.xlen(queue.keys.shared) == 1
    assert len(await pages(mesh)) == 2


async def test_letters_of_tasks_show_the_task(mesh: Mesh) -> None:
    lease = await mesh.register("bob", "validation")
    spec = task_pb2.TaskSpec(task_type="validate", required_capabilities=["validation"])
    assigned = await mesh.stub.AssignTask(task_pb2.AssignTaskRequest(spec=spec), metadata=ALICE)
    async with mesh.connected("bob", lease_id=lease) as bob:
        await bob.answer(await bob.delivery(), DROP)
    (found,) = await pages(mesh, filter=Filter(type="validate"))
    assert found.task.task_id == assigned.task.task_id
    assert found.task.spec.task_type == "validate"
    for key in await mesh.redis.keys("*:task:*"):
        await mesh.redis.delete(key)
    assert await pages(mesh, filter=Filter(type="validate")) == []
    (forgotten,) = await pages(mesh)
    assert forgotten.task.task_id == assigned.task.task_id


async def test_very_many_letters(mesh: Mesh) -> None:
    small = letter(payload="").SerializeToString()
    rare = letter("carol", "rare").SerializeToString()
    for start in range(0, 30_000, 10_000):
        pipeline = mesh.redis.pipeline(transaction=False)
        for number in range(start, start + 10_000):
            data = rare if number == 5 else small
            pipeline.xadd(DEAD, {"letter": data}, id=f"{NOW * 1000 + number}-1")
        await pipeline.execute()
    wanted = Filter(type="rare")
    first = await page(mesh, filter=wanted)
    # Only so much is looked at in one call.
    assert (len(first.dead_letters), first.next_page_token) == (0, first.next_page_token)
    assert first.next_page_token
    assert len((await page(mesh, page_size=1000)).dead_letters) == 1000
    (found,) = await pages(mesh, filter=wanted)
    assert found.dead_letter_id == f"agents:{NOW}005-1"
    assert await replay(mesh, filter=wanted) == (1, 0)
    assert await purge(mesh, filter=Filter(type="test.message", reason="NO")) == 29_999


async def test_large_letters_make_short_pages(mesh: Mesh) -> None:
    await bury(mesh, *(letter(payload='"' + "x" * 900_000 + '"') for _ in range(8)))
    first = await page(mesh)
    assert 1 <= len(first.dead_letters) < 4
    assert len(await pages(mesh)) == 8
