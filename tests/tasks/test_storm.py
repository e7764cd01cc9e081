"""Many tasks while agents vanish, servers come and go, and Redis is killed: none is lost, and each
ends once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.server.errors import MeshError
from bxmesh.server.streams import connect
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import end_tasks
from tests.conftest import start_valkey
from tests.tasks.harness import (
    COMPLETED,
    World,
    failure,
    json_payload,
    nothing_left,
    spec,
    until,
    world,
)

TASKS = 800
KILLS = 3
POLICY = RetryPolicy(max_attempts=100, initial_backoff=Duration(), max_backoff=Duration(seconds=1))
AWAY = {"REDIS_UNAVAILABLE", "REDIS_REFUSED"}


async def insist(call: object) -> pb.Task:
    """Assigns a task, however long Redis is away; the request id makes repetition harmless."""
    while True:
        try:
            task: pb.Task = await call()  # type: ignore[operator]
            return task
        except MeshError as error:
            assert error.reason in AWAY, error
            await asyncio.sleep(0.02)


class Flaky:
    """An agent that handles what it gets, fails now and then, and sometimes vanishes midway."""

    def __init__(self, w: World, name: str, chance: random.Random) -> None:
        self._w = w
        self._name = name
        self._chance = chance
        self.completed: Counter[str] = Counter()

    async def run(self) -> None:
        """Lives again and again."""
        while True:
            try:
                await self._w.join(self._name, slots=8)
                await self._live()
            except (MeshError, *REDIS_ERRORS):
                await asyncio.sleep(0.02)

    async def _live(self) -> None:
        """Works until it vanishes without a word."""
        while self._chance.random() > 0.01:
            task_id, attempt = await self._w.taken(self._name)
            store = self._w.store
            try:
                await store.begin(task_id, attempt, self._name)
                if self._chance.random() < 0.05:
                    await store.fail(task_id, attempt, self._name, failure())
                else:
                    task = await store.finish(task_id, attempt, self._name, json_payload())
                    self.completed[task_id] += task.state == COMPLETED
            except MeshError as error:
                if error.reason != "LEASE_LOST":
                    raise


async def test_nothing_is_lost_in_a_storm(short_dir: Path) -> None:
    chance = random.Random(20261125)
    server = start_valkey(short_dir, appendfsync="always")
    client: Redis = connect(f"unix://{short_dir}/valkey.sock")
    try:
        async with world(client) as w, world(client) as second:
            names = [f"a{number}" for number in range(6)]
            flaky = [
                Flaky((w, second)[number % 2], name, random.Random(number))
                for number, name in enumerate(names)
            ]
            agents = [asyncio.create_task(each.run()) for each in flaky]

            async def assign(first: int) -> list[str]:
                ids = []
                for number in range(first, TASKS, 10):
                    by = (w, second)[number % 2]
                    task = await insist(
                        lambda by=by, number=number: by.assign(
                            spec(retry_policy=POLICY), request_id=f"r{number}", wait_for_agent=True
                        )
                    )
                    ids.append(task.task_id)
                return ids

            assigning = [asyncio.create_task(assign(first)) for first in range(10)]

            for kill in range(1, KILLS + 1):
                goal = kill * TASKS // (KILLS + 2)
                await until(lambda goal=goal: sum(each.completed.total() for each in flaky) >= goal)
                server.terminate()
                await asyncio.sleep(chance.uniform(0, 0.3))
                server = await asyncio.to_thread(start_valkey, short_dir, appendfsync="always")
            ids = [task_id for part in await asyncio.gather(*assigning) for task_id in part]
            assert len(set(ids)) == TASKS

            async def ended() -> bool:
                with suppress(MeshError):
                    counts, load, _, _ = await w.store.figures()
                    return not counts and not load
                return False

            await until(ended)
            await end_tasks(*agents)
            for task_id in ids:
                task = await w.get(task_id)
                assert task.state == COMPLETED
                # Every revision had one event, so that it ended once.
                events = await client.xrange(f"bxmesh:{{work:agents}}:task-events:{task_id}")
                assert int(events[-1][0].split(b"-")[0]) == task.revision
            await nothing_left(client)
    finally:
        await client.aclose()
        server.terminate()
