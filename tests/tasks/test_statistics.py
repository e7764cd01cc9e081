"""Figures of tasks."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.server.tasks import errors
from bxmesh.server.tasks.keys import SPANS
from bxmesh.server.tasks.statistics import task_stats
from tests.tasks.harness import World, failure, json_payload, spec, world


async def stats(w: World, **wanted: Any) -> pb.GetTaskStatsResponse:
    request = pb.GetTaskStatsRequest(**wanted)
    return await task_stats(w.store, w.tasks.roster.agents, request)


async def test_there_are_figures_without_tasks(redis: Redis) -> None:
    async with world(redis) as w:
        assert await stats(w) == pb.GetTaskStatsResponse()


async def test_tasks_are_counted(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=6)
        once = RetryPolicy(max_attempts=1)
        tasks = [
            await w.assign(spec(retry_policy=once, task_type="odd" if n % 2 else "even"))
            for n in range(8)
        ]
        await w.store.begin(tasks[0].task_id, 1, "a")
        for number in (1, 2, 3):
            await w.store.finish(tasks[number].task_id, 1, "a", json_payload())
        await w.store.fail(tasks[4].task_id, 1, "a", failure())
        await w.store.cancel(tasks[5].task_id, errors.cancelled("", ""))
        # The two that waited were given out.
        for number in (6, 7):
            await w.reaches(tasks[number].task_id, 2)
        waiting = await w.assign(spec("later", task_type="even"), wait_for_agent=True)

        found = await stats(w)
        assert dict(found.tasks_by_state) == {
            "TASK_STATE_PENDING": 1,
            "TASK_STATE_ASSIGNED": 2,
            "TASK_STATE_RUNNING": 1,
            "TASK_STATE_COMPLETED": 3,
            "TASK_STATE_FAILED": 1,
            "TASK_STATE_CANCELLED": 1,
        }
        assert found.completion_rate == pytest.approx(0.6)
        assert found.throughput == pytest.approx(5 / 3600)
        assert found.queue_depth == 1
        assert (
            0
            < found.latency_p50.ToNanoseconds()
            <= found.latency_p95.ToNanoseconds()
            <= found.latency_p99.ToNanoseconds()
        )
        (agent,) = found.agents
        assert (agent.agent_id, agent.completed, agent.failed) == ("a", 3, 1)
        assert 0 < agent.utilisation <= 1

        even = await stats(w, task_type="even", period=Duration(seconds=100))
        assert dict(even.tasks_by_state) == {
            "TASK_STATE_PENDING": 1,
            "TASK_STATE_ASSIGNED": 1,
            "TASK_STATE_RUNNING": 1,
            "TASK_STATE_COMPLETED": 1,
            "TASK_STATE_FAILED": 1,
        }
        assert even.throughput == pytest.approx(2 / 100)
        await w.store.cancel(waiting.task_id, errors.cancelled("", ""))
        assert (await stats(w)).queue_depth == 0


def span(end: float, **fields: Any) -> dict[Any, Any]:
    """The end of a task, in seconds since 1970."""
    return {
        "type": "t",
        "state": pb.TASK_STATE_COMPLETED,
        "agent": "a",
        "slots": 2,
        "created": int((end - 10) * 1e6),
        "assigned": int((end - 4) * 1e6),
        **fields,
    }


async def test_latencies_and_utilisation(redis: Redis) -> None:
    async with world(redis, running=False) as w:
        seconds, micros = await redis.time()
        now = seconds + micros / 1e6
        for number in range(100):
            end = now - 3000 + 20 * number
            await redis.xadd(
                SPANS,
                span(end, created=int((end - number - 1) * 1e6)),
                id=f"{int(end * 1000)}-0",
            )
        # An attempt that failed, and a task that nobody had.
        await redis.xadd(SPANS, span(now, state=0, agent="b", slots=1), id=f"{int(now * 1000)}-0")
        await redis.xadd(
            SPANS,
            span(now, state=pb.TASK_STATE_CANCELLED, agent="", assigned=0, created=int(now * 1e6)),
            id=f"{int(now * 1000)}-1",
        )
        found = await stats(w)
        assert found.latency_p50.ToNanoseconds() == pytest.approx(50e9, abs=2e9)
        assert found.latency_p95.ToNanoseconds() == pytest.approx(95e9, abs=2e9)
        assert found.latency_p99.ToNanoseconds() == pytest.approx(99e9, abs=2e9)
        assert [agent.agent_id for agent in found.agents] == ["a", "b"]
        # 100 times 4 s of two slots for an hour; once 4 s of one slot.
        assert found.agents[0].utilisation == pytest.approx(400 / 7200, rel=0.01)
        assert found.agents[1].utilisation == pytest.approx(4 / 3600, rel=0.05)
        assert (found.agents[1].completed, found.agents[1].failed) == (0, 1)
        last = await stats(w, period=Duration(seconds=1500))
        assert last.tasks_by_state["TASK_STATE_COMPLETED"] == pytest.approx(25, abs=2)
        later = await stats(w, period=Duration(seconds=500))
        assert dict(later.tasks_by_state) == {"TASK_STATE_CANCELLED": 1}


async def test_only_so_many_ends_are_kept(redis: Redis) -> None:
    async with world(redis, most_spans=100) as w:
        await w.join("a", slots=9)
        for _ in range(400):
            task = await w.assign()
            await w.store.finish(task.task_id, 1, "a", json_payload())
        kept = await redis.xlen(SPANS)
        assert 100 <= kept <= 300
        found = await stats(w)
        assert found.tasks_by_state["TASK_STATE_COMPLETED"] == kept
        # The rate is that of the time in which they ended.
        assert found.throughput > kept / 60
