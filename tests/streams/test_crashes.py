"""Workers and servers that are killed, frozen and restarted: nothing is lost, nothing commits
twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError
from bxmesh.server.streams import DeadLetters, Ticket, WorkContext, WorkQueue, connect
from bxmesh.work.v1 import work_pb2
from tests.conftest import start_valkey
from tests.streams.harness import WorkerProcess, options, read_text, running, text, until

STARTED = "started"
RELEASE = "release"


async def hold(context: WorkContext) -> StringValue:
    return text("in this process")


async def test_the_work_of_a_killed_worker_is_done_once_more(
    redis: Redis, shared_valkey: str
) -> None:
    queue = WorkQueue(redis, options())
    ticket = await queue.enqueue("hold", text(), reply_to="nobody")
    victim = await WorkerProcess.start(shared_valkey, "victim")
    try:
        await until(lambda: redis.llen(STARTED))
        other = await queue.enqueue("note", text(), reply_to="nobody", lane="victim")
        await until(lambda: queue.outcome(other.item_id))
        lane = await queue.enqueue("hold", text(), reply_to="nobody", lane="victim")
        await until(lambda: _count(redis, 2))
    finally:
        await victim.kill()
    async with running(redis, queue.options, {"hold": hold}) as worker:
        # From here on nothing is added: the stream is idle.
        outcomes = [await until(partial(queue.outcome, t.item_id)) for t in (ticket, lane)]
        await until(lambda: worker.counters.done == 2)
    for outcome in outcomes:
        assert outcome.attempts == 2
        assert read_text(outcome.result) == "in this process"
    first = await queue.outcome(other.item_id)
    assert first is not None
    assert first.attempts == 1
    stats = await queue.stats()
    assert (stats.waiting, stats.pending, stats.dead) == (0, 0, 0)
    assert await redis.llen(STARTED) == 2


async def _count(redis: Redis, count: int) -> bool:
    return bool(await redis.llen(STARTED) >= count)


async def test_a_frozen_worker_cannot_commit(redis: Redis, shared_valkey: str) -> None:
    queue = WorkQueue(redis, options())
    frozen = await WorkerProcess.start(shared_valkey, "frozen")
    try:
        ticket = await queue.enqueue("hold", text(), reply_to="nobody")
        await until(lambda: redis.llen(STARTED))
        frozen.freeze()
        async with running(redis, queue.options, {"hold": hold}) as worker:
            outcome = await until(lambda: queue.outcome(ticket.item_id))
            await redis.set(RELEASE, 1)
            frozen.thaw()
            counters = await frozen.stop()
            await until(lambda: worker.counters.done == 1)
    finally:
        await frozen.kill()
    assert outcome.attempts == 2
    assert counters["done"] == 0
    assert counters["lost_leases"] == 1
    again = await queue.outcome(ticket.item_id)
    assert again == outcome
    assert (await queue.stats()).pending == 0


@asynccontextmanager
async def mortal_valkey(directory: Path) -> AsyncIterator[Valkey]:
    server = Valkey(directory)
    try:
        yield server
    finally:
        server.kill()


class Valkey:
    """A server that can be killed and comes back with what it had."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = f"unix://{directory}/valkey.sock"
        self._server = start_valkey(directory, appendfsync="always")

    def kill(self) -> None:
        self._server.terminate()

    async def restart(self) -> None:
        self.kill()
        self._server = await asyncio.to_thread(start_valkey, self._directory, appendfsync="always")


async def enqueue_surely(queue: WorkQueue, kind: str, request_id: str) -> Ticket:
    """Asks until the answer comes; the request id makes that harmless."""
    while True:
        try:
            return await queue.enqueue(kind, text(request_id), request_id=request_id)
        except MeshError as error:
            if error.retry_after is None:
                raise
            await asyncio.sleep(0.02)


async def test_redis_restarted_under_load_loses_no_acknowledged_item(short_dir: Path) -> None:
    done: dict[str, int] = {}

    async def count(context: WorkContext) -> None:
        name = read_text(context.item.payload)
        await asyncio.sleep(0.001)
        done[name] = done.get(name, 0) + 1

    async with mortal_valkey(short_dir) as valkey:
        clients = [connect(valkey.url) for _ in range(3)]
        queue = WorkQueue(clients[0], options(lease=1.5, max_attempts=10))
        acknowledged: set[str] = set()

        async def produce(name: str) -> None:
            for i in range(80):
                await enqueue_surely(queue, "count", f"{name}-{i}")
                acknowledged.add(f"{name}-{i}")

        async with (
            running(clients[1], queue.options, {"count": count}, "a", concurrency=4) as a,
            running(clients[2], queue.options, {"count": count}, "b", concurrency=4) as b,
        ):
            producers = asyncio.gather(*(produce(f"p{i}") for i in range(4)))
            for at in (60, 160):
                await until(partial(_has_grown, acknowledged, at))
                await valkey.restart()
            await producers
            await until(lambda: done.keys() >= acknowledged)
            await until(lambda: _is_empty(queue))
            before = a.counters.done, b.counters.done
            for i in range(40):
                await queue.enqueue("count", text(f"after-{i}"))
            await until(lambda: a.counters.done > before[0] and b.counters.done > before[1])
        assert len(acknowledged) == 320
        assert (await queue.stats()).dead == 0
        for client in clients:
            await client.aclose()


def _has_grown(names: set[str], size: int) -> bool:
    return len(names) > size


async def _is_empty(queue: WorkQueue) -> bool:
    try:
        stats = await queue.stats()
    except MeshError:
        return False
    return stats.waiting + stats.pending + stats.delayed == 0


async def test_every_item_ends_exactly_once_whatever_happens(short_dir: Path) -> None:
    chance = random.Random(20261121)
    kinds = ("note", "note", "fail_once", "fail", "refuse", "crash", "hold")
    async with mortal_valkey(short_dir) as valkey:
        redis = connect(valkey.url)
        await redis.ping()
        queue = WorkQueue(redis, options(max_attempts=4))
        workers = {name: await WorkerProcess.start(valkey.url, name) for name in ("one", "two")}
        tickets: dict[str, tuple[str, Ticket]] = {}
        cancelled: set[str] = set()
        kills, restarts, crashes = 3, 2, 3

        async def revive() -> None:
            for name, worker in workers.items():
                if worker.process.returncode is not None:
                    workers[name] = await WorkerProcess.start(valkey.url, name)

        try:
            for step in range(120):
                kind = chance.choice(kinds)
                if kind == "crash":
                    crashes -= 1
                    kind = kind if crashes >= 0 else "note"
                ticket = await enqueue_surely(queue, kind, f"request-{step}")
                tickets[ticket.item_id] = kind, ticket
                if kind == "hold" or chance.random() < 0.1:
                    try:
                        await queue.cancel(ticket)
                        cancelled.add(ticket.item_id)
                    except MeshError:
                        continue
                if chance.random() < 0.03 and kills:
                    kills -= 1
                    await chance.choice(list(workers.values())).kill()
                if step in (40, 80) and restarts:
                    restarts -= 1
                    await valkey.restart()
                await revive()
            await until(lambda: _set(redis, RELEASE))

            async def all_ended() -> bool:
                await revive()
                return await _is_empty(queue)

            await until(all_ended)
            stored = await DeadLetters(queue).list(page_size=1000)
        finally:
            for worker in workers.values():
                await worker.kill()
        dead = [work_pb2.WorkEntry.FromString(s.letter.entry).item.item_id for s in stored]
        assert len(dead) == len(set(dead))
        assert len(tickets) == 120
        for item_id, (kind, _) in tickets.items():
            outcome = await queue.outcome(item_id)
            assert outcome is not None
            code = outcome.status.code
            was_cancelled = code == 1
            assert (code == 0) + (item_id in dead) + was_cancelled == 1
            if was_cancelled:
                assert item_id in cancelled
            elif kind in ("fail", "refuse"):
                assert item_id in dead
        assert any(item_id not in dead for item_id in tickets)
        assert {tickets[item_id][0] for item_id in dead} >= {"fail", "refuse"}
        await redis.aclose()


async def _set(redis: Redis, key: str) -> bool:
    return bool(await redis.set(key, 1))
