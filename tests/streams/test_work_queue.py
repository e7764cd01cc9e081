"""Putting work into a queue: nothing missed, nothing twice, nothing without bound."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, invalid_argument
from bxmesh.server.streams import QueueOptions, WorkContext, WorkQueue, connect
from bxmesh.server.streams.keys import QueueKeys
from bxmesh.server.streams.maintenance import Maintenance
from tests.streams.harness import options, read_text, running, text, until


async def echo(context: WorkContext) -> StringValue:
    return text(read_text(context.item.payload))


async def test_nothing_added_before_the_first_worker_is_missed(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    for i in range(20):
        await queue.enqueue("echo", text(str(i)))
    assert (await queue.stats()).waiting == 20
    async with running(redis, options(), {"echo": echo}, concurrency=4) as worker:
        await until(lambda: worker.counters.done == 20)
    stats = await queue.stats()
    assert (stats.waiting, stats.pending, stats.delayed, stats.dead) == (0, 0, 0, 0)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_of_redis_are_understood(
    redis: Redis, shared_valkey: str, protocol: int
) -> None:
    client = connect(f"{shared_valkey}?protocol={protocol}")
    queue = WorkQueue(client, options())
    ticket = await queue.enqueue("echo", text("x"), reply_to="nobody")
    assert (await queue.stats()).oldest_age >= 0
    async with running(client, options(), {"echo": echo}):
        await until(lambda: queue.outcome(ticket.item_id))
        await Maintenance(queue, "worker").tidy()
    await client.aclose()


async def test_a_repeated_request_is_the_first_item(redis: Redis) -> None:
    calls = 0

    async def count(context: WorkContext) -> StringValue:
        nonlocal calls
        calls += 1
        return text(str(calls))

    queue = WorkQueue(redis, options())
    first = await queue.enqueue("count", text(), request_id="r")
    again = await queue.enqueue("count", text(), request_id="r")
    assert again.repeated
    assert again.item_id == first.item_id
    async with running(redis, options(), {"count": count}):
        await until(lambda: queue.outcome(first.item_id))
        late = await queue.enqueue("count", text(), request_id="r")
        other = await queue.enqueue("count", text(), request_id="s")
        await until(lambda: queue.outcome(other.item_id))
    assert late.item_id == first.item_id
    assert calls == 2


async def test_the_first_answer_to_a_request_may_be_an_error(redis: Redis) -> None:
    async def refuse(context: WorkContext) -> None:
        raise invalid_argument("payload", "It is wrong.")

    queue = WorkQueue(redis, options())
    first = await queue.enqueue("refuse", text(), request_id="r")
    async with running(redis, options(), {"refuse": refuse}) as worker:
        outcome = await until(lambda: queue.outcome(first.item_id))
        again = await queue.enqueue("refuse", text(), request_id="r")
        assert again.item_id == first.item_id
        assert worker.counters.buried == 1
    assert outcome.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_a_request_and_its_outcome_are_forgotten_together(redis: Redis) -> None:
    queue = WorkQueue(redis, options(outcome_lifetime=100.0))
    ticket = await queue.enqueue("echo", text(), request_id="r")
    assert await redis.pttl(queue.keys.request("r")) > 100_000
    async with running(redis, options(outcome_lifetime=100.0), {"echo": echo}):
        await until(lambda: queue.outcome(ticket.item_id))
    assert 0 < await redis.pttl(queue.keys.request("r")) <= 100_000
    assert 0 < await redis.pttl(queue.keys.outcome(ticket.item_id)) <= 100_000


async def test_a_cancelled_request_starts_anew(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    first = await queue.enqueue("echo", text(), request_id="r")
    assert await queue.cancel(first)
    second = await queue.enqueue("echo", text(), request_id="r")
    assert not second.repeated
    assert second.item_id != first.item_id
    # The first one's ticket must not touch what the request stands for now.
    await queue.cancel(first)
    assert (await queue.enqueue("echo", text(), request_id="r")).item_id == second.item_id


async def test_a_full_queue_says_when_to_come_back(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_depth=3))
    for _ in range(3):
        await queue.enqueue("echo", text())
    with pytest.raises(MeshError) as caught:
        await queue.enqueue("echo", text())
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after is not None
    assert await redis.xlen(queue.keys.shared) == 3


async def test_delayed_retries_count_as_depth(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_depth=2))
    await redis.zadd(queue.keys.delayed, {"a": 1e15, "b": 1e15})
    with pytest.raises(MeshError, match="full"):
        await queue.enqueue("echo", text())


async def test_too_late_and_too_large_are_refused(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    with pytest.raises(MeshError) as late:
        await queue.enqueue("echo", text(), deadline=time.time() - 1)
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(MeshError) as large:
        await queue.enqueue("echo", BytesValue(value=bytes(65 << 20)))
    assert large.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert await redis.dbsize() == 0


async def test_a_deadline_beyond_time_is_none(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    for deadline in (9e18, float("inf")):
        await queue.enqueue("echo", text(), deadline=deadline)
    async with running(redis, options(), {"echo": echo}) as worker:
        await until(lambda: worker.counters.done == 2)


async def test_without_redis_it_is_unavailable(short_dir: object) -> None:
    client = connect(f"unix://{short_dir}/nobody.sock")
    queue = WorkQueue(client, options())
    ticket = None
    for call in (
        lambda: queue.enqueue("echo", text()),
        lambda: queue.outcome("x"),
        lambda: queue.stats(),
    ):
        with pytest.raises(MeshError) as caught:
            ticket = await call()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.retry_after
    assert ticket is None
    await client.aclose()


async def test_scripts_survive_being_forgotten(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    await queue.enqueue("echo", text())
    await redis.script_flush()
    await asyncio.gather(*(queue.enqueue("echo", text()) for _ in range(50)))
    assert await redis.xlen(queue.keys.shared) == 51


async def test_a_call_fails_alone(redis: Redis) -> None:
    good = WorkQueue(redis, options("good"))
    await redis.set(QueueKeys("bad").shared, "not a stream")
    bad = WorkQueue(redis, options("bad"))
    bad.scripts = good.scripts
    results = await asyncio.gather(
        good.enqueue("echo", text()),
        bad.enqueue("echo", text()),
        good.enqueue("echo", text()),
        return_exceptions=True,
    )
    assert [isinstance(result, MeshError) for result in results] == [False, True, False]


async def test_the_keys_of_a_queue_share_a_slot(redis: Redis) -> None:
    queue = WorkQueue(redis, QueueOptions("strange}{name"))
    keys = queue.keys
    anything: Any = redis
    slots = {
        await anything.execute_command("CLUSTER", "KEYSLOT", key)
        for key in (
            keys.shared,
            keys.lane("a}b{c"),
            keys.lanes,
            keys.delayed,
            keys.dead,
            keys.outcome("{x}"),
            keys.request("}{"),
        )
    }
    assert len(slots) == 1
