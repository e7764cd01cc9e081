"""Failures: retried later, with bounds, then kept as dead letters."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, invalid_argument, unavailable
from bxmesh.server.streams import DeadLetters, WorkContext, WorkQueue
from bxmesh.work.v1 import work_pb2
from tests.streams.harness import options, read_text, running, text, until


async def fail(context: WorkContext) -> None:
    raise unavailable("Not today.")


async def refuse(context: WorkContext) -> None:
    raise invalid_argument("payload", "It is wrong.")


async def test_retries_are_counted_and_then_there_is_a_dead_letter(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_attempts=3))
    ticket = await queue.enqueue("fail", text("content"), reply_to="nobody", identity="somebody")
    async with running(redis, queue.options, {"fail": fail}) as worker:
        await until(lambda: worker.counters.buried == 1)
    assert worker.counters.retried == 2
    [stored] = await DeadLetters(queue).list()
    letter = stored.letter
    assert letter.attempts == 3
    assert letter.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert letter.error.message == "Not today."
    assert letter.first_time.ToNanoseconds() < letter.last_time.ToNanoseconds()
    assert letter.origin_stream == queue.keys.shared
    assert letter.origin_entry_id
    assert letter.worker_id == "worker"
    item = work_pb2.WorkEntry.FromString(letter.entry).item
    assert item.item_id == ticket.item_id
    assert item.identity == "somebody"
    assert read_text(item.payload) == "content"
    outcome = await queue.outcome(ticket.item_id)
    assert outcome is not None
    assert outcome.attempts == 3


async def test_a_retry_may_succeed(redis: Redis) -> None:
    async def third_time(context: WorkContext) -> StringValue:
        if context.attempt < 3:
            raise unavailable("Not yet.")
        return text("at last")

    queue = WorkQueue(redis, options(max_attempts=3))
    ticket = await queue.enqueue("work", text(), reply_to="nobody")
    async with running(redis, queue.options, {"work": third_time}):
        outcome = await until(lambda: queue.outcome(ticket.item_id))
    assert read_text(outcome.result) == "at last"
    assert outcome.attempts == 3
    assert (await queue.stats()).dead == 0


async def test_retries_wait_a_random_bounded_time(redis: Redis) -> None:
    queue = WorkQueue(redis, options(retry_base=1000.0, retry_cap=2000.0))
    for _ in range(30):
        await queue.enqueue("fail", text())
    async with running(redis, queue.options, {"fail": fail}, concurrency=8) as worker:
        await until(lambda: worker.counters.retried == 30)
        seconds, _ = await redis.time()
    due: Any = await redis.zrange(queue.keys.delayed, 0, -1, withscores=True)
    delays = [score / 1000 - seconds for _, score in due]
    assert len(delays) == 30
    assert -60 < min(delays) < max(delays) < 1001
    assert max(delays) - min(delays) > 100


async def test_a_handler_may_ask_for_more_patience_up_to_the_cap(redis: Redis) -> None:
    async def later(context: WorkContext) -> None:
        raise unavailable("Later.", retry_after=1e12)

    queue = WorkQueue(redis, options(retry_cap=5000.0))
    await queue.enqueue("later", text())
    async with running(redis, queue.options, {"later": later}) as worker:
        await until(lambda: worker.counters.retried == 1)
        seconds, _ = await redis.time()
    due: Any = await redis.zrange(queue.keys.delayed, 0, -1, withscores=True)
    assert 4900 < due[0][1] / 1000 - seconds < 5001


async def test_a_final_error_is_answered_or_buried_at_once(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with running(redis, queue.options, {"refuse": refuse}) as worker:
        await queue.enqueue("refuse", text())
        await until(lambda: worker.counters.buried == 1)
        ticket = await queue.enqueue("refuse", text(), reply_to="somebody")
        outcome = await until(lambda: queue.outcome(ticket.item_id))
    assert outcome.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert worker.counters.retried == 0
    [stored] = await DeadLetters(queue).list()
    assert stored.letter.attempts == 1


async def test_dead_letters_are_listed_in_pages_and_purged(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    letters = DeadLetters(queue)
    async with running(redis, queue.options, {"refuse": refuse}) as worker:
        for _ in range(5):
            await queue.enqueue("refuse", text())
        await until(lambda: worker.counters.buried == 5)
    first = await letters.list(page_size=2)
    rest = await letters.list(page_size=10, after=first[-1].letter_id)
    ids = [stored.letter_id for stored in (*first, *rest)]
    assert len(set(ids)) == 5
    assert (await letters.get(ids[3])).attempts == 1
    assert await letters.purge(ids[:2]) == 2
    assert await letters.purge([]) == 0
    assert await letters.purge() == 3
    assert await letters.list() == []


async def test_a_replayed_letter_has_all_its_attempts_again(redis: Redis) -> None:
    broken = True

    async def work(context: WorkContext) -> StringValue:
        if broken:
            raise unavailable("Not today.")
        return text(str(context.attempt))

    queue = WorkQueue(redis, options(max_attempts=2))
    letters = DeadLetters(queue)
    ticket = await queue.enqueue("work", text(), request_id="r")
    async with running(redis, queue.options, {"work": work}) as worker:
        await until(lambda: worker.counters.buried == 1)
        broken = False
        [stored] = await letters.list()
        await letters.replay(stored.letter_id)
        await until(lambda: worker.counters.done == 1)
        outcome = await queue.outcome(ticket.item_id)
    assert outcome is not None
    assert read_text(outcome.result) == "1"
    assert await letters.list() == []


async def test_strange_letters_and_ids_are_answered(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    letters = DeadLetters(queue)
    await redis.xadd(queue.keys.dead, {"letter": b"\xff garbage"}, id="1-1")
    await redis.xadd(queue.keys.dead, {"something": "else"}, id="1-2")
    assert [stored.letter_id for stored in await letters.list()] == ["1-1", "1-2"]
    with pytest.raises(MeshError) as unreadable:
        await letters.replay("1-1")
    assert unreadable.value.code is grpc.StatusCode.FAILED_PRECONDITION
    for letter_id in ("2-2", "-", "+", "", "1", "x", "1-1-1"):
        with pytest.raises(MeshError) as missing:
            await letters.replay(letter_id)
        assert missing.value.code is grpc.StatusCode.NOT_FOUND
    assert await letters.purge(["1-1", "1-2"]) == 2
