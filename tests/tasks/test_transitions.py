"""What may become of a task, and what may not."""

from __future__ import annotations

import asyncio

from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy
from bxmesh.server.tasks import errors
from tests.tasks.harness import (
    ASSIGNED,
    CANCELLED,
    COMPLETED,
    FAILED,
    PENDING,
    RUNNING,
    TIMED_OUT,
    failure,
    json_payload,
    nothing_left,
    reason_of,
    refused,
    spec,
    world,
)

AT_ONCE = Duration(seconds=0)


async def test_a_task_is_assigned_begun_and_completed(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign(spec(description="some", labels={"k": "v"}), trace_context={"t": "1"})
        assert (task.state, task.agent_id, task.attempts, task.revision) == (ASSIGNED, "a", 1, 1)
        assert (task.owner, task.spec.description, task.spec.labels["k"]) == ("alice", "some", "v")
        assert task.trace_context["t"] == "1"
        assert task.create_time.ToNanoseconds() > 0
        assert not task.HasField("start_time") and not task.HasField("end_time")
        assert await w.inbox("a") == [(task.task_id, 1)]
        assert await w.store.deliverable(task.task_id, 1, "a") == task
        assert await w.store.deliverable(task.task_id, 1, "b") is None
        assert await w.store.deliverable(task.task_id, 2, "a") is None

        begun = await w.store.begin(task.task_id, 1, "a")
        assert (begun.state, begun.revision) == (RUNNING, 2)
        assert begun.HasField("start_time")
        half = pb.TaskProgress(percent=50, message="half")
        task = await w.store.progress(task.task_id, 1, "a", half)
        assert (task.progress.percent, task.progress.message) == (50, "half")
        assert task.progress.HasField("update_time")

        done = await w.store.finish(task.task_id, 1, "a", json_payload('{"x": 1}'))
        assert (done.state, done.result.json.json) == (COMPLETED, '{"x": 1}')
        assert (done.agent_id, done.revision) == ("a", 4)
        kept = done.expire_time.ToNanoseconds() - done.end_time.ToNanoseconds()
        assert kept == 7 * 86400 * 10**9
        assert await w.get(task.task_id) == done
        assert await w.store.deliverable(task.task_id, 1, "a") is None
        await nothing_left(redis)


async def test_a_report_that_comes_again_changes_nothing(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=2)
        task = await w.assign()
        done = await w.store.finish(task.task_id, 1, "a", json_payload("1"))
        for repeated in (
            await w.store.finish(task.task_id, 1, "a", json_payload("2")),
            await w.store.fail(task.task_id, 1, "a", failure()),
            await w.store.begin(task.task_id, 1, "a"),
        ):
            assert repeated == done
        later = RetryPolicy(initial_backoff=Duration(seconds=3600), max_attempts=2)
        task = await w.assign(spec(retry_policy=later))
        failed = await w.store.fail(task.task_id, 1, "a", failure())
        assert failed.state == PENDING
        assert await w.store.fail(task.task_id, 1, "a", failure("OTHER")) == failed


async def test_only_who_has_a_task_may_report_on_it(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign()
        for attempt, agent in ((1, "b"), (0, "a"), (2, "a")):
            with refused("FAILED_PRECONDITION", "LEASE_LOST"):
                await w.store.finish(task.task_id, attempt, agent, json_payload())
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await w.store.report_delivery(task.task_id, "2:1-1", "alice", json_payload())
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            await w.store.finish("none", 1, "a", json_payload())
        assert await w.get(task.task_id) == task


async def test_a_delivery_stands_for_its_attempt(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        policy = RetryPolicy(initial_backoff=AT_ONCE)
        task = await w.assign(spec(retry_policy=policy))
        inbox = "bxmesh:{work:agents}:inbox:a:2"
        ((first, _),) = await redis.xrange(inbox)
        first_delivery = f"2:{first.decode()}"
        for wrong in ("1:1-1", f"1:{first.decode()}", "x", "2:0-1"):
            with refused("FAILED_PRECONDITION", "LEASE_LOST"):
                await w.store.report_delivery(task.task_id, wrong, "alice", failure())
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await w.store.report_delivery(task.task_id, first_delivery, "bob", failure())
        await w.store.report_delivery(task.task_id, first_delivery, "alice", failure())
        await w.reaches(task.task_id, ASSIGNED)
        second = (await redis.xrange(inbox))[-1][0].decode()
        with refused("FAILED_PRECONDITION", "LEASE_LOST"):
            await w.store.report_delivery(task.task_id, first_delivery, "alice", json_payload())
        # What was delivered again after a lost connection has a later name.
        ms, _, number = second.partition("-")
        for later in (f"2:{second}", f"2:{ms}-{int(number) + 1}", f"2:{int(ms) + 5}-0"):
            progress = pb.TaskProgress(percent=1)
            change = await w.store.report_delivery(task.task_id, later, "alice", progress)
            assert change.state == RUNNING


async def test_failures_are_tried_again_until_the_policy_ends_it(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        policy = RetryPolicy(initial_backoff=AT_ONCE, max_attempts=3)
        task = await w.assign(spec(retry_policy=policy))
        for attempt in (1, 2):
            await w.store.fail(task.task_id, attempt, "a", failure(f"NO_{attempt}"))
            task = await w.reaches(task.task_id, ASSIGNED)
            assert (task.attempts, reason_of(task.error)) == (attempt + 1, f"NO_{attempt}")
        task = await w.store.fail(task.task_id, 3, "a", failure("NO_3"))
        assert (task.state, reason_of(task.error), task.attempts) == (FAILED, "NO_3", 3)
        assert task.HasField("end_time")
        await nothing_left(redis)


async def test_what_no_repetition_cures_is_not_repeated(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        policy = RetryPolicy(
            initial_backoff=AT_ONCE, max_attempts=9, non_retryable_reasons=["BAD", "WORSE"]
        )
        task = await w.assign(spec(retry_policy=policy))
        await w.store.fail(task.task_id, 1, "a", failure("GOOD"))
        await w.reaches(task.task_id, ASSIGNED)
        task = await w.store.fail(task.task_id, 2, "a", failure("WORSE"))
        assert (task.state, task.attempts) == (FAILED, 2)


async def test_a_retry_waits_for_its_time(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        policy = RetryPolicy(initial_backoff=Duration(seconds=3600), max_attempts=3)
        task = await w.assign(spec(retry_policy=policy))
        task = await w.store.fail(task.task_id, 1, "a", failure())
        assert (task.state, task.agent_id) == (PENDING, "")
        other = await w.assign()
        assert other.state == ASSIGNED
        await w.store.finish(other.task_id, 1, "a", json_payload())
        assert await w.state(task.task_id) == PENDING
        # Its time has come.
        await redis.zadd("bxmesh:{work:agents}:task-due", {task.task_id: 1})
        # The deadline is later, so it only goes on.
        assert (await w.reaches(task.task_id, ASSIGNED)).attempts == 2


async def test_a_task_that_takes_too_long_ends(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign(spec(timeout=Duration(nanos=50_000_000)))
        await w.store.begin(task.task_id, 1, "a")
        task = await w.reaches(task.task_id, TIMED_OUT)
        assert (reason_of(task.error), task.agent_id) == ("TASK_TIMED_OUT", "a")
        assert await w.inbox("a") == []
        late = await w.store.finish(task.task_id, 1, "a", json_payload())
        assert late == task
        await nothing_left(redis)


async def test_the_capability_says_how_long_a_task_may_take(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", "slow", capability={"timeout": Duration(seconds=50)})
        await w.join("b", "fast", capability={"timeout": Duration(nanos=50_000_000)})
        short, long = await w.assign(spec("fast")), await w.assign(spec("slow"))
        assert (await w.reaches(short.task_id, TIMED_OUT)).attempts == 1
        assert await w.state(long.task_id) == ASSIGNED


async def test_nobody_waits_for_ever(redis: Redis) -> None:
    async with world(redis, patience=0.05) as w:
        task = await w.assign(wait_for_agent=True)
        task = await w.reaches(task.task_id, TIMED_OUT)
        assert reason_of(task.error) == "NO_AGENT_CAME"
        await nothing_left(redis)


async def test_a_cancelled_task_ends_at_once_and_its_delivery_vanishes(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a", slots=1)
        assigned, waiting = await w.assign(), await w.assign()
        assert (assigned.state, waiting.state) == (ASSIGNED, PENDING)
        error = errors.cancelled("no need", "alice")
        record = await w.store.cancel(waiting.task_id, error)
        assert record.task().state == CANCELLED
        task = (await w.store.cancel(assigned.task_id, error)).task()
        assert (task.state, reason_of(task.error)) == (CANCELLED, "TASK_CANCELLED")
        assert await w.inbox("a") == []
        again = (await w.store.cancel(assigned.task_id, errors.cancelled("", "bob"))).task()
        assert again == task
        with refused("NOT_FOUND", "TASK_NOT_FOUND"):
            await w.store.cancel("none", error)
        await nothing_left(redis)


async def test_of_many_that_end_a_task_one_wins(redis: Redis) -> None:
    async with world(redis) as w, world(redis, running=False) as other:
        await w.join("a", slots=100)
        tasks = [await w.assign(spec(retry_policy=RetryPolicy(max_attempts=1))) for _ in range(40)]
        for task in tasks:
            ends = await asyncio.gather(
                w.store.finish(task.task_id, 1, "a", json_payload()),
                other.store.fail(task.task_id, 1, "a", failure()),
                other.store.cancel(task.task_id, errors.cancelled("", "")),
            )
            final = await w.get(task.task_id)
            assert final.revision == 2
            assert {getattr(end, "task", lambda end=end: end)().state for end in ends} == {
                final.state
            }
        await nothing_left(redis)


async def test_a_large_error_is_cut(redis: Redis) -> None:
    async with world(redis) as w:
        await w.join("a")
        task = await w.assign(spec(retry_policy=RetryPolicy(max_attempts=1)))
        error = failure()
        error.message = "x" * (1 << 20)
        task = await w.store.fail(task.task_id, 1, "a", error)
        assert (task.state, reason_of(task.error)) == (FAILED, "OUT_OF_LUCK")
        assert task.error.ByteSize() < 16 << 10
