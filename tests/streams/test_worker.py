"""Doing work: leases, drains, lanes, deadlines, cancellation, and whatever a stream may hold."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, cast

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.server.errors import internal
from bxmesh.server.streams import DeadLetters, WorkContext, Worker, WorkQueue
from bxmesh.server.streams.keys import GROUP
from bxmesh.work.v1 import work_pb2
from tests.streams.harness import options, running, text, until


def _has_done(worker: Worker, count: int) -> bool:
    return worker.counters.done == count


async def note(context: WorkContext) -> StringValue:
    return text(context.item.item_id)


class Gate:
    """A handler that waits to be let through, and remembers who came."""

    def __init__(self) -> None:
        self.came: list[tuple[str, int]] = []
        self.interrupted: list[str] = []
        self.opened = asyncio.Event()

    async def __call__(self, context: WorkContext) -> StringValue:
        self.came.append((context.item.item_id, context.attempt))
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.interrupted.append(context.item.item_id)
            raise
        return text(context.item.item_id)


async def test_a_handler_longer_than_its_lease_runs_once(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options(lease=0.3))
    ticket = await queue.enqueue("gate", text(), reply_to="nobody")
    async with (
        running(redis, queue.options, {"gate": gate}, "a") as a,
        running(redis, queue.options, {"gate": gate}, "b") as b,
    ):
        end = time.monotonic() + 4 * queue.options.lease
        await until(lambda: time.monotonic() > end)
        gate.opened.set()
        outcome = await until(lambda: queue.outcome(ticket.item_id))
        await until(lambda: a.counters.done + b.counters.done == 1)
    assert gate.came == [(ticket.item_id, 1)]
    assert outcome.attempts == 1


async def test_equal_entry_ids_in_two_streams_are_two_items(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options(lease=0.3))
    async with running(redis, queue.options, {"gate": gate}, "a", concurrency=4) as worker:
        await until(lambda: redis.zscore(queue.keys.lanes, "a"))
        for name, stream in (("x", queue.keys.shared), ("y", queue.keys.lane("a"))):
            item = work_pb2.WorkItem(item_id=name, kind="gate", max_attempts=3)
            entry = work_pb2.WorkEntry(item=item).SerializeToString()
            await redis.xadd(stream, {"entry": entry, "deliveries": 0}, id="99999999999999-0")
        await until(lambda: len(gate.came) == 2)
        end = time.monotonic() + 3 * queue.options.lease
        await until(lambda: time.monotonic() > end)
        gate.opened.set()
        await until(lambda: worker.counters.done == 2)
    assert sorted(gate.came) == [("x", 1), ("y", 1)]


async def test_no_more_is_taken_than_can_be_run(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options())
    async with running(redis, queue.options, {"gate": gate}, "a") as worker:
        await until(lambda: redis.zscore(queue.keys.lanes, "a"))
        for i in range(6):
            await queue.enqueue("gate", text(), lane="a" if i % 2 else "")
        await until(lambda: gate.came)
        assert (await queue.stats()).pending == 1
        gate.opened.set()
        await until(lambda: worker.counters.done == 6)
    assert all(attempt == 1 for _, attempt in gate.came)


async def test_two_workers_share(redis: Redis) -> None:
    queue = WorkQueue(redis, options())

    async def nap(context: WorkContext) -> None:
        await asyncio.sleep(0.002)

    for _ in range(200):
        await queue.enqueue("nap", text())
    async with (
        running(redis, queue.options, {"nap": nap}, "a", concurrency=2) as a,
        running(redis, queue.options, {"nap": nap}, "b", concurrency=2) as b,
    ):
        await until(lambda: a.counters.done + b.counters.done == 200)
    assert min(a.counters.done, b.counters.done) > 50


async def test_a_drain_hands_back_what_it_did_not_finish_uncounted(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options(lease=30.0))
    async with running(redis, queue.options, {"gate": gate}, "a", drain_grace=0.0):
        await until(lambda: redis.zscore(queue.keys.lanes, "a"))
        for _ in range(5):
            await queue.enqueue("gate", text(), lane="a")
        await queue.enqueue("gate", text())
        await until(lambda: gate.came)
    assert await redis.exists(queue.keys.lane("a"), queue.keys.lanes) == 0
    assert await redis.xinfo_consumers(queue.keys.shared, GROUP) == []
    gate.opened.set()
    async with running(redis, queue.options, {"gate": gate}, "b", concurrency=8) as other:
        await until(lambda: other.counters.done == 6)
    assert {attempt for _, attempt in gate.came} == {1}


async def test_a_drain_lets_handlers_finish(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options(lease=0.3))
    ticket = await queue.enqueue("gate", text(), reply_to="nobody")
    async with running(redis, queue.options, {"gate": gate}, "a", drain_grace=20.0) as worker:
        await until(lambda: gate.came)
        worker.stop()
        async with running(redis, queue.options, {"gate": note}, "other"):
            end = time.monotonic() + 3 * queue.options.lease
            await until(lambda: time.monotonic() > end)
            gate.opened.set()
            await until(lambda: worker.counters.done == 1)
    outcome = await queue.outcome(ticket.item_id)
    assert outcome is not None
    assert outcome.attempts == 1


async def test_lanes_have_affinity_and_closed_ones_spill(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_depth=2))
    async with (
        running(redis, queue.options, {"note": note}, "a") as a,
        running(redis, queue.options, {"note": note}, "b") as b,
    ):
        await until(lambda: redis.zscore(queue.keys.lanes, "b"))
        for done in range(20):
            await queue.enqueue("note", text(), lane="b")
            await until(partial(_has_done, b, done + 1))
        assert a.counters.done == 0
    ticket = await queue.enqueue("note", text(), lane="b")
    assert ticket.stream == queue.keys.shared


async def test_a_full_lane_spills(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_depth=2))
    await redis.zadd(queue.keys.lanes, {"a": 1e15})
    streams = [(await queue.enqueue("note", text(), lane="a")).stream for _ in range(4)]
    assert streams == [queue.keys.lane("a")] * 2 + [queue.keys.shared] * 2


async def test_the_lane_of_a_silent_worker_is_closed(redis: Redis) -> None:
    queue = WorkQueue(redis, options(lease=0.3))
    await redis.zadd(queue.keys.lanes, {"dead": 1e15})
    await redis.xgroup_create(queue.keys.lane("dead"), GROUP, id="0", mkstream=True)
    for _ in range(3):
        await queue.enqueue("note", text(), lane="dead")
    # It took one and fell silent.
    await redis.xreadgroup(GROUP, "dead", {queue.keys.lane("dead"): ">"}, count=1)
    await redis.zadd(queue.keys.lanes, {"dead": 1})
    assert (await queue.enqueue("note", text(), lane="dead")).stream == queue.keys.shared
    attempts: list[int] = []

    async def record(context: WorkContext) -> None:
        attempts.append(context.attempt)

    async with running(redis, queue.options, {"note": record}, concurrency=2) as worker:
        await until(lambda: worker.counters.done == 4)

        async def gone() -> bool:
            return not await redis.exists(queue.keys.lane("dead"))

        await until(gone)
    assert sorted(attempts) == [1, 1, 1, 2]


async def test_a_worker_known_to_be_dead_is_retired_at_once(redis: Redis) -> None:
    queue = WorkQueue(redis, options(lease=100.0))
    await redis.zadd(queue.keys.lanes, {"dead": 1e15})
    await redis.xgroup_create(queue.keys.lane("dead"), GROUP, id="0", mkstream=True)
    for lane in ("dead", "dead", ""):
        await queue.enqueue("note", text(), lane=lane)
    await queue.ensure_group()
    streams = dict.fromkeys((queue.keys.lane("dead"), queue.keys.shared), ">")
    await redis.xreadgroup(GROUP, "dead", streams, count=1)  # type: ignore[arg-type]
    assert await queue.retire("dead") == 3
    assert await redis.exists(queue.keys.lane("dead"), queue.keys.lanes) == 0
    stats = await queue.stats()
    assert (stats.waiting, stats.pending) == (3, 0)


async def test_nothing_is_lost_between_enqueueing_and_closing(redis: Redis) -> None:
    queue = WorkQueue(redis, options(max_depth=10_000))
    done: set[str] = set()

    async def record(context: WorkContext) -> None:
        done.add(context.item.item_id)

    async def fill() -> set[str]:
        return {(await queue.enqueue("r", text(), lane="b")).item_id for _ in range(400)}

    async with running(redis, queue.options, {"r": record}, "a", concurrency=4):
        filling = asyncio.create_task(fill())
        while not filling.done():
            async with running(redis, queue.options, {"r": record}, "b", concurrency=4):
                await until(lambda: redis.zscore(queue.keys.lanes, "b"))
        added = await filling
        await until(lambda: done >= added)


async def test_work_moves_on_after_everything_was_flushed(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    async with running(redis, queue.options, {"note": note}, "a", concurrency=4) as worker:
        for _ in range(3):
            before = worker.counters.done
            await redis.flushall()
            await redis.script_flush()
            for _ in range(3):
                await queue.enqueue("note", text(), lane="a")
            await until(partial(_has_done, worker, before + 3))


async def test_a_deadline_while_waiting_and_while_running(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options())
    soon = time.time() + 0.1
    waiting = await queue.enqueue("gate", text(), reply_to="nobody", deadline=soon)
    await until(lambda: time.time() > soon)
    async with running(redis, queue.options, {"gate": gate}) as worker:
        await until(lambda: worker.counters.expired == 1)
        assert gate.came == []
        late = await queue.enqueue("gate", text(), reply_to="x", deadline=time.time() + 0.2)
        await until(lambda: worker.counters.expired == 2)
    assert gate.interrupted == [late.item_id]
    for ticket in (waiting, late):
        outcome = await queue.outcome(ticket.item_id)
        assert outcome is not None
        assert outcome.status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_a_handlers_own_timeout_is_a_failure(redis: Redis) -> None:
    async def times_out(context: WorkContext) -> None:
        raise TimeoutError

    async def gives_up(context: WorkContext) -> None:
        raise asyncio.CancelledError

    async def answers_nonsense(context: WorkContext) -> StringValue:
        return cast(StringValue, 7)

    queue = WorkQueue(redis, options(max_attempts=2))
    handlers = {f.__name__: f for f in (times_out, gives_up, answers_nonsense)}
    async with running(redis, queue.options, handlers) as worker:
        for name in handlers:
            await queue.enqueue(name, text(), deadline=time.time() + 100)
        await until(lambda: worker.counters.buried == 3)
    assert worker.counters.retried == 3


async def test_cancelling_before_while_and_after(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options())
    unstarted = await queue.enqueue("gate", text(), reply_to="nobody")
    assert await queue.cancel(unstarted)
    async with running(redis, queue.options, {"gate": gate, "note": note}) as worker:
        running_ = await queue.enqueue("gate", text(), reply_to="nobody")
        await until(lambda: gate.came)
        assert not await queue.cancel(running_)
        await until(lambda: gate.interrupted == [running_.item_id])
        await until(lambda: worker.counters.cancelled == 1)
        ended = await queue.enqueue("note", text(), reply_to="nobody")
        await until(lambda: queue.outcome(ended.item_id))
        assert not await queue.cancel(ended)
    for ticket, code in ((unstarted, 1), (running_, 1), (ended, 0)):
        outcome = await queue.outcome(ticket.item_id)
        assert outcome is not None
        assert outcome.status.code == code
    assert (await queue.stats()).pending == 0


async def test_a_cancelled_retry_is_not_begun_again(redis: Redis) -> None:
    attempts: list[int] = []

    async def fail(context: WorkContext) -> None:
        attempts.append(context.attempt)
        raise internal("Again.")

    queue = WorkQueue(redis, options(retry_base=1e9, retry_cap=1e9))
    ticket = await queue.enqueue("fail", text())
    async with running(redis, queue.options, {"fail": fail}) as worker:
        await until(lambda: worker.counters.retried == 1)
        await queue.cancel(ticket)
        entries: Any = await redis.zrange(queue.keys.delayed, 0, -1)
        [entry] = entries
        await redis.zadd(queue.keys.delayed, {entry: 1})
        await until(lambda: worker.counters.cancelled == 1)
    assert attempts == [1]


async def test_a_missed_cancellation_is_noticed_with_the_lease(redis: Redis) -> None:
    gate, queue = Gate(), WorkQueue(redis, options(lease=0.3))
    ticket = await queue.enqueue("gate", text(), reply_to="nobody")
    async with running(redis, queue.options, {"gate": gate}) as worker:
        await until(lambda: gate.came)
        outcome = work_pb2.WorkOutcome(item_id=ticket.item_id)
        await redis.set(queue.keys.outcome(ticket.item_id), outcome.SerializeToString())
        await until(lambda: worker.counters.cancelled == 1)
    assert gate.interrupted == [ticket.item_id]


async def test_what_was_cancelled_cannot_be_done(redis: Redis) -> None:
    async def stubborn(context: WorkContext) -> StringValue:
        await queue.cancel(ticket)
        while not context.cancelled:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue
        return text("done all the same")

    queue = WorkQueue(redis, options())
    ticket = await queue.enqueue("stubborn", text(), reply_to="nobody")
    async with running(redis, queue.options, {"stubborn": stubborn}) as worker:
        await until(lambda: worker.counters.cancelled == 1)
    assert worker.counters.done == 0
    outcome = await queue.outcome(ticket.item_id)
    assert outcome is not None
    assert outcome.status.code == grpc.StatusCode.CANCELLED.value[0]


def _entry(attempts: int = 0, **changes: Any) -> bytes:
    item = work_pb2.WorkItem(**{"item_id": "i", "kind": "note", "max_attempts": 3, **changes})
    return bytes(work_pb2.WorkEntry(item=item, attempts=attempts).SerializeToString())


@pytest.mark.parametrize(
    "fields",
    [
        {"nothing": "here"},
        {"entry": b""},
        {"entry": b"\xff\xfe garbage"},
        {"entry": _entry(item_id="")},
        {"entry": _entry(max_attempts=0)},
        {"entry": _entry(max_attempts=-(2**31))},
        {"entry": _entry(attempts=-5)},
        {"entry": _entry(attempts=2**31 - 1, max_attempts=2**31 - 1)},
        {"entry": _entry(), "deliveries": "-5"},
        {"entry": _entry(), "deliveries": "9" * 5000},
        {"entry": _entry(), "deliveries": "inf"},
        {"entry": _entry(), "deliveries": "garbage"},
        {"entry": _entry(), "deliveries": b"\xff"},
    ],
    ids=str,
)
async def test_what_cannot_be_read_becomes_a_dead_letter(
    redis: Redis, fields: dict[Any, Any]
) -> None:
    queue = WorkQueue(redis, options())
    await redis.xadd(queue.keys.shared, fields)
    async with running(redis, queue.options, {"note": note}) as worker:
        await until(lambda: worker.counters.buried == 1)
        await queue.enqueue("note", text())
        await until(lambda: worker.counters.done == 1)
    [stored] = await DeadLetters(queue).list()
    assert stored.letter.entry == fields.get("entry", b"nothing=here")
    assert stored.letter.origin_stream == queue.keys.shared
    assert stored.letter.error.message.startswith("The entry is not a work item")


async def test_strange_entries_can_be_moved(redis: Redis) -> None:
    queue = WorkQueue(redis, options(lease=0.3))
    await redis.xgroup_create(queue.keys.shared, GROUP, id="0", mkstream=True)
    await redis.xadd(queue.keys.shared, {f"field{i}": "x" for i in range(9000)})
    await redis.xadd(queue.keys.shared, {"entry": _entry()})
    await redis.xadd(queue.keys.shared, {"entry": _entry(item_id="j"), "deliveries": "1e308"})
    await redis.xreadgroup(GROUP, "vanished", {queue.keys.shared: ">"}, count=10)
    async with running(redis, queue.options, {"note": note}, concurrency=3) as worker:
        await until(lambda: (worker.counters.buried, worker.counters.done) == (2, 1))
    assert (await queue.stats()).pending == 0


async def test_work_that_kills_its_workers_is_given_up(redis: Redis) -> None:
    queue = WorkQueue(redis, options(lease=0.2, max_attempts=2))
    ticket = await queue.enqueue("note", text(), reply_to="nobody")
    await redis.xgroup_create(queue.keys.shared, GROUP, id="0")
    for _ in range(2):
        await redis.xreadgroup(GROUP, "vanishes", {queue.keys.shared: ">"}, count=1)
        await queue.requeue(queue.keys.shared, vanished=True)
    async with running(redis, queue.options, {"note": note}) as worker:
        await until(lambda: worker.counters.buried == 1)
    assert worker.counters.done == 0
    outcome = await queue.outcome(ticket.item_id)
    assert outcome is not None
    assert "vanished 2 times" in outcome.status.message


async def test_unknown_kinds_and_payloads_are_answered(redis: Redis) -> None:
    async def needs_text(context: WorkContext) -> StringValue:
        value = StringValue()
        if not context.item.payload.Unpack(value):
            raise internal("This is no text.")
        return value

    queue = WorkQueue(redis, options(max_attempts=1))
    unknown = await queue.enqueue("what", text(), reply_to="nobody")
    strange = await queue.enqueue("text", work_pb2.WorkOutcome(), reply_to="nobody")
    async with running(redis, queue.options, {"text": needs_text}, concurrency=2):
        first = await until(lambda: queue.outcome(unknown.item_id))
        second = await until(lambda: queue.outcome(strange.item_id))
    assert first.status.code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert second.status.code == grpc.StatusCode.INTERNAL.value[0]


async def test_a_settlement_that_redis_refuses_is_left_to_the_lease(redis: Redis) -> None:
    queue = WorkQueue(redis, options())
    await redis.set(queue.keys.dead, "not a stream")
    await redis.xadd(queue.keys.shared, {"entry": b"garbage"})
    async with running(redis, queue.options, {"note": note}, concurrency=2) as worker:
        await queue.enqueue("note", text())
        await until(lambda: worker.counters.done == 1)
        assert (await queue.stats()).pending == 1
        await redis.delete(queue.keys.dead)
        await until(lambda: worker.counters.buried == 1)
