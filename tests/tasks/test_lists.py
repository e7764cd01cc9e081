"""Pages of tasks."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from bxmesh.agent.v1 import message_pb2
from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.server.security.identities import Identity
from bxmesh.server.tasks.listing import list_tasks
from tests.tasks.harness import (
    COMPLETED,
    PENDING,
    RUNNING,
    World,
    json_payload,
    refused,
    spec,
    world,
)


async def names(w: World, identity: str = "", **wanted: Any) -> list[str]:
    """The names of all tasks that fit, by pages of two."""
    request = pb.ListTasksRequest(page_size=2, **wanted)
    found: list[str] = []
    while True:
        response = await list_tasks(
            w.store, request, Identity(identity, "user") if identity else None
        )
        assert len(response.tasks) <= 2
        found += [task.task_id for task in response.tasks]
        request.page_token = response.next_page_token
        if not request.page_token:
            return found


async def test_pages_hold_every_task_once_the_newest_first(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=3)
        await w.join("b", "other", slots=100)
        tasks = [
            await w.assign(
                spec(
                    *("work" if number % 3 else "other",),
                    task_type="odd" if number % 2 else "even",
                    labels={"third": str(number % 3), "all": "yes"},
                ),
                owner="alice" if number < 8 else "bob",
            )
            for number in range(10)
        ]
        ids = [task.task_id for task in tasks]
        newest = ids[::-1]
        await w.store.begin(ids[1], 1, "a")
        await w.store.finish(ids[0], 1, "b", json_payload())

        assert await names(w) == newest
        times = [task.create_time.ToMicroseconds() for task in tasks]
        assert times == sorted(set(times))
        assert await names(w, states=[RUNNING]) == [ids[1]]
        assert await names(w, states=[RUNNING, COMPLETED]) == [ids[1], ids[0]]
        assert await names(w, states=[PENDING]) == [ids[8], ids[7], ids[5]]
        assert await names(w, task_type="odd") == newest[::2]
        assert await names(w, task_type="none") == []
        assert await names(w, agent_id="b") == [ids[9], ids[6], ids[3], ids[0]]
        assert await names(w, labels={"third": "2", "all": "yes"}) == [ids[8], ids[5], ids[2]]
        assert await names(w, labels={"third": "2", "all": "no"}) == []
        assert await names(w, start_time=tasks[3].create_time) == newest[:7]
        assert await names(w, end_time=tasks[3].create_time) == newest[7:]
        assert (
            await names(w, start_time=tasks[3].create_time, end_time=tasks[5].create_time)
            == newest[5:7]
        )
        assert await names(w, "bob") == newest[:2]
        # It sees what it assigned, and what its agents have.
        assert await names(w, "alice") == [newest[0], *newest[2:]]
        everything = await list_tasks(w.store, pb.ListTasksRequest(), None)
        assert [task.task_id for task in everything.tasks] == newest
        assert everything.next_page_token == ""
        assert everything.tasks[-1] == await w.get(ids[0])


async def test_a_list_of_children(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=9)
        await w.join("b", slots=99)
        top = await w.assign(spec(agent_id="a"))
        parent = await w.store.parent(top.task_id)
        children = [
            (await w.assign(spec(parent_task_id=top.task_id), parent=parent)).task_id
            for _ in range(5)
        ]
        assert await names(w, parent_task_id=top.task_id) == children[::-1]
        assert await names(w, parent_task_id="none") == []
        assert await names(w, parent_task_id=children[0]) == []


async def test_a_token_is_of_its_filters(redis: Redis) -> None:
    async with world(redis) as w:
        for _ in range(3):
            await w.assign(wait_for_agent=True)
        request = pb.ListTasksRequest(page_size=1)
        token = (await list_tasks(w.store, request, None)).next_page_token
        for wrong in (token + "x", "x", ":", token.partition(":")[0] + ":-5", "é:1"):
            request.page_token = wrong
            with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
                await list_tasks(w.store, request, None)
        request.page_token = token
        request.task_type = "other"
        with refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"):
            await list_tasks(w.store, request, None)


async def test_a_page_fits_into_a_message(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=9)
        payload = message_pb2.Payload()
        payload.protobuf.value = b"x" * 900_000
        ids = [(await w.assign(spec(parameters=payload))).task_id for _ in range(7)]
        await w.store.finish(ids[3], 1, "a", payload)
        found: list[str] = []
        request = pb.ListTasksRequest()
        while True:
            response = await list_tasks(w.store, request, None)
            assert 0 < response.ByteSize() < 4 << 20
            found += [task.task_id for task in response.tasks]
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        assert found == ids[::-1]


async def test_what_fits_is_found_among_many(redis: Redis) -> None:
    async with world(redis) as w:
        first = await w.assign(spec(labels={"k": "v"}, task_type="rare"), wait_for_agent=True)
        for _ in range(1100):
            await w.assign(spec(), wait_for_agent=True)
        assert await names(w, task_type="rare") == [first.task_id]
        assert await names(w, labels={"k": "v"}) == [first.task_id]
        # Forgotten ones leave no hole.
        await redis.delete(f"bxmesh:{{work:agents}}:task:{first.task_id}")
        assert await names(w, labels={"k": "v"}) == []
