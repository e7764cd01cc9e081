"""Waiting for work: outcome and progress arrive, and what nobody waits for ends."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError
from bxmesh.server.streams import Ticket, WorkClient, WorkContext, WorkQueue
from bxmesh.server.streams.keys import reply_channel
from bxmesh.server.streams.replies import Submission
from bxmesh.work.v1 import work_pb2
from tests.streams.harness import options, read_text, running, text, until


async def echo(context: WorkContext) -> StringValue:
    return text(read_text(context.item.payload))


async def test_the_outcome_comes_and_leaves_nothing_behind(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with running(redis, queue.options, {"echo": echo}), WorkClient(redis) as client:
        async with client.submit(queue, "echo", text("x")) as submission:
            outcome = await submission.outcome()
        assert client.waiting == 0

        async def forgotten() -> bool:
            return await queue.outcome(outcome.item_id) is None

        await until(forgotten)
    assert read_text(outcome.result) == "x"
    assert outcome.worker_id == "worker"
    assert outcome.attempts == 1


async def test_progress_comes_before_the_outcome(redis: Redis) -> None:
    async def steps(context: WorkContext) -> StringValue:
        for i in range(5):
            await context.progress(text(str(i)))
        return text("end")

    queue = WorkQueue(redis, options())
    async with running(redis, queue.options, {"steps": steps}), WorkClient(redis) as client:
        await until(lambda: _subscribed(redis, client))
        async with client.submit(queue, "steps", text()) as submission:
            events = [event async for event in submission.events()]
    assert [read_text(event.progress) for event in events[:-1]] == list("01234")
    assert read_text(events[-1].outcome.result) == "end"


async def _subscribed(redis: Redis, client: WorkClient) -> bool:
    [(_, count)] = await redis.pubsub_numsub(reply_channel(client.server_id))
    return bool(count)


async def test_progress_to_nobody_goes_nowhere(redis: Redis) -> None:
    async def steps(context: WorkContext) -> None:
        await context.progress(text())

    queue = WorkQueue(redis, options())
    async with running(redis, queue.options, {"steps": steps}) as worker:
        await queue.enqueue("steps", text())
        await queue.enqueue("steps", text(), reply_to="nobody")
        await until(lambda: worker.counters.done == 2)


async def test_progress_that_nobody_reads_is_bounded_and_the_outcome_comes(redis: Redis) -> None:
    submission = Submission(WorkQueue(redis, options()), Ticket("i", "", "", "", repeated=False))
    for _ in range(10_000):
        event = work_pb2.WorkEvent(item_id="i")
        event.progress.Pack(text())
        submission.offer(event)
    submission.offer(work_pb2.WorkEvent(item_id="i", outcome=work_pb2.WorkOutcome(item_id="i")))
    assert (await submission.outcome()).item_id == "i"


async def test_a_lost_event_loses_nothing(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with WorkClient(redis) as client, client.submit(queue, "echo", text("x")) as submission:
        await until(lambda: _subscribed(redis, client))
        await redis.client_kill_filter(_type="pubsub")
        outcome = work_pb2.WorkOutcome(item_id=submission.ticket.item_id, worker_id="w")
        await redis.set(queue.keys.outcome(submission.ticket.item_id), outcome.SerializeToString())
        assert (await submission.outcome()).worker_id == "w"


async def test_a_large_result_is_announced_and_fetched(redis: Redis) -> None:
    async def large(context: WorkContext) -> StringValue:
        return text("x" * 3_000_000)

    queue = WorkQueue(redis, options())
    async with (
        running(redis, queue.options, {"large": large}, concurrency=8),
        WorkClient(redis) as client,
    ):

        async def ask() -> int:
            async with client.submit(queue, "large", text()) as submission:
                return len(read_text((await submission.outcome()).result))

        assert await asyncio.gather(*(ask() for _ in range(16))) == [3_000_000] * 16


async def test_unreadable_events_are_dropped(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with running(redis, queue.options, {"echo": echo}), WorkClient(redis) as client:
        await until(lambda: _subscribed(redis, client))
        await redis.publish(reply_channel(client.server_id), b"\xff garbage")
        async with client.submit(queue, "echo", text("x")) as submission:
            assert read_text((await submission.outcome()).result) == "x"


async def test_who_leaves_takes_the_work_back(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with WorkClient(redis) as client:
        async with client.submit(queue, "echo", text()) as submission:
            pass
        assert await redis.xlen(queue.keys.shared) == 0
        outcome = await queue.outcome(submission.ticket.item_id)
    assert outcome is not None
    assert outcome.status.code == grpc.StatusCode.CANCELLED.value[0]


async def test_who_is_cancelled_leaves_nothing_running(redis: Redis) -> None:
    interrupted = asyncio.Event()
    began = asyncio.Event()

    async def endless(context: WorkContext) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    queue = WorkQueue(redis, options())

    async def ask(client: WorkClient) -> None:
        async with client.submit(queue, "endless", text()) as submission:
            await submission.outcome()

    async with running(redis, queue.options, {"endless": endless}), WorkClient(redis) as client:
        task = asyncio.create_task(ask(client))
        await began.wait()
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(interrupted.wait(), 20)
        assert client.waiting == 0
    assert (await queue.stats()).pending == 0


async def test_who_is_cancelled_while_enqueueing_leaves_nothing_either(redis: Redis) -> None:
    queue = WorkQueue(redis, options())

    async def ask(client: WorkClient) -> None:
        async with client.submit(queue, "echo", text()):
            await asyncio.Event().wait()

    async with WorkClient(redis) as client:
        for steps in range(8):
            task = asyncio.create_task(ask(client))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert client.waiting == 0
    assert await redis.xlen(queue.keys.shared) == 0


async def test_a_deadline_of_the_waiting_side(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with WorkClient(redis) as client:
        loop = asyncio.get_running_loop()
        async with client.submit(queue, "echo", text()) as submission:
            with pytest.raises(MeshError) as caught:
                await submission.outcome(loop.time() + 0.05)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await redis.xlen(queue.keys.shared) == 0


async def test_two_wait_for_one_request(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with WorkClient(redis) as here, WorkClient(redis) as there:
        async with there.submit(queue, "echo", text("x"), request_id="r") as second:
            async with here.submit(queue, "echo", text("x"), request_id="r") as late:
                assert late.ticket.item_id == second.ticket.item_id
            # Who came first leaves, but the other still waits.
            assert await redis.xlen(queue.keys.shared) == 1
        assert await redis.xlen(queue.keys.shared) == 1
        async with (
            running(redis, queue.options, {"echo": echo}),
            here.submit(queue, "echo", text("x"), request_id="r") as again,
        ):
            assert again.ticket.item_id == second.ticket.item_id
            assert read_text((await again.outcome()).result) == "x"


async def test_a_full_queue_is_heard_and_nobody_waits(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_depth=1))
    await queue.enqueue("echo", text())
    async with WorkClient(redis) as client:
        with pytest.raises(MeshError) as caught:
            async with client.submit(queue, "echo", text()):
                raise AssertionError("the queue is full")
        assert client.waiting == 0
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
