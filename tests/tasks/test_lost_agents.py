"""Agents that vanish, servers that vanish, and a Redis that comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from redis.asyncio import Redis

from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.server.errors import MeshError
from bxmesh.server.streams import connect
from bxmesh.server.streams.connection import CONNECTION_ERRORS
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.tasks import errors
from tests.conftest import start_valkey
from tests.tasks.harness import (
    ASSIGNED,
    COMPLETED,
    FAILED,
    PENDING,
    RUNNING,
    World,
    json_payload,
    nothing_left,
    reason_of,
    refused,
    spec,
    until,
    world,
)


async def test_tasks_of_who_leaves_go_to_others(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=2)
        begun, assigned = await w.assign(), await w.assign()
        await w.taken("a")
        await w.store.begin(begun.task_id, 1, "a")
        await w.join("b", slots=9)
        await w.agents.leave("a", w.leases["a"])
        for task in (begun, assigned):
            moved = await w.reaches(task.task_id, ASSIGNED)
            while moved.agent_id == "a":
                await until(lambda: w.inbox("b"))
                moved = await w.get(task.task_id)
            assert (moved.agent_id, moved.attempts) == ("b", 2)
            assert reason_of(moved.error) == "AGENT_LOST"
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await w.store.finish(begun.task_id, 1, "a", json_payload())
        assert await w.inbox("a") == []


async def test_tasks_of_who_falls_silent_go_to_others(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", seconds=0.3)
        task = await w.assign()
        await w.taken("a")
        await w.store.begin(task.task_id, 1, "a")
        assert (await w.reaches(task.task_id, PENDING)).attempts == 1
        await w.join("b")
        assert (await w.reaches(task.task_id, ASSIGNED)).agent_id == "b"


async def test_who_is_started_anew_gets_its_tasks_again(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign()
        await w.taken("a")
        await w.store.begin(task.task_id, 1, "a")
        await w.join("a")
        task = await w.reaches(task.task_id, ASSIGNED)
        assert (task.agent_id, task.attempts) == ("a", 2)
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await w.store.finish(task.task_id, 1, "a", json_payload())
        await w.store.finish(task.task_id, 2, "a", json_payload())
        await nothing_left(redis)


async def test_a_task_that_kills_its_agents_fails(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign(spec(retry_policy=RetryPolicy(max_attempts=3)))
        for attempt in (1, 2, 3):
            assert await w.taken("a") == (task.task_id, attempt)
            await w.join("a")
            state = FAILED if attempt == 3 else ASSIGNED
            task = await w.reaches(task.task_id, state)
            while state == ASSIGNED and task.attempts == attempt:
                await until(lambda: w.inbox("a"))
                task = await w.get(task.task_id)
        assert (task.state, reason_of(task.error), task.attempts) == (FAILED, "AGENT_LOST", 3)
        await nothing_left(redis)


async def test_what_an_agent_never_saw_uses_up_no_attempt(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign(spec(retry_policy=RetryPolicy(max_attempts=1)))
        for attempt in (2, 3):
            await w.join("a")

            async def given(attempt: int = attempt) -> bool:
                return await w.inbox("a") == [(task.task_id, attempt)]

            await until(given)
        await w.taken("a")
        await w.join("a")
        assert reason_of((await w.reaches(task.task_id, FAILED)).error) == "AGENT_LOST"


async def test_who_left_unseen_is_found(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign()
    # No server runs while the agent leaves, and nobody keeps the changes.
    await w.agents.leave("a")
    await redis.delete("bxmesh:{agents}:events")
    async with world(redis) as w:
        assert (await w.reaches(task.task_id, PENDING)).attempts == 1
        await w.store.cancel(task.task_id, errors.cancelled("", ""))
        # A server that had not heard gave another one to an agent that was gone.
        ghost = await w.join("ghost")
        await w.agents.leave("ghost")
        async with world(redis, running=False) as slow:
            slow.tasks.roster._enter(ghost)
            lost = await slow.assign(spec(agent_id="ghost"))
        assert lost.state == ASSIGNED
        await w.tasks.sweeper.compare()
        assert await w.state(lost.task_id) == PENDING


async def work(w: World, name: str, done: Counter[str]) -> None:
    """An agent that does whatever it gets, once Redis is there."""
    while True:
        try:
            task_id, attempt = await w.taken(name)
            await w.store.begin(task_id, attempt, name)
            task = await w.store.finish(task_id, attempt, name, json_payload())
            assert task.state == COMPLETED
            done[task_id] += 1
        except MeshError as error:
            assert error.reason in ("LEASE_LOST", "REDIS_UNAVAILABLE", "REDIS_REFUSED")


async def test_two_servers_give_each_task_once(redis: Redis) -> None:
    async with world(redis) as one, world(redis) as two:
        done: Counter[str] = Counter()
        names = [f"a{number}" for number in range(5)]
        for name in names:
            await one.join(name, slots=2)
        workers = [asyncio.create_task(work(one, name, done)) for name in names]
        tasks = await asyncio.gather(*(w.assign() for _ in range(150) for w in (one, two)))
        await until(lambda: len(done) == 300)
        await end_tasks(*workers)
        assert set(done.values()) == {1}
        assert {(await one.get(task.task_id)).attempts for task in tasks} == {1}
        await nothing_left(redis)


async def test_tasks_outlive_a_restart_of_redis(short_dir: Path) -> None:
    server = start_valkey(short_dir)
    client = connect(f"unix://{short_dir}/valkey.sock")
    try:
        async with world(client) as w:
            await w.join("a", slots=1)
            begun = await w.assign()
            waiting = [await w.assign() for _ in range(5)]
            await w.taken("a")
            await w.store.begin(begun.task_id, 1, "a")
            await asyncio.to_thread(server.stop)
            with refused("UNAVAILABLE", "REDIS_UNAVAILABLE"):
                await w.assign()
            server = await asyncio.to_thread(start_valkey, short_dir)

            async def back() -> bool:
                try:
                    return bool(await client.ping())
                except CONNECTION_ERRORS:
                    return False

            await until(back)
            assert await w.state(begun.task_id) == RUNNING
            await w.store.finish(begun.task_id, 1, "a", json_payload())
            for _ in waiting:
                task_id, attempt = await w.taken("a")
                await w.store.finish(task_id, attempt, "a", json_payload())
            for task in waiting:
                assert await w.state(task.task_id) == COMPLETED
            await nothing_left(client)
    finally:
        await client.aclose()
        await asyncio.to_thread(server.stop)
