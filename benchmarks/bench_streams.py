"""How fast the work mechanism is: empty items with leases, retries and dead letters on."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from google.protobuf.wrappers_pb2 import Int32Value

from benchmarks.figures import Figure
from bxmesh.server.embedded_valkey import EmbeddedValkey
from bxmesh.server.streams import (
    QueueOptions,
    WorkClient,
    WorkContext,
    Worker,
    WorkerOptions,
    WorkQueue,
    connect,
)

ITEMS = 10_000
ROUND_TRIPS = 500
PRODUCERS = 500
QUEUE = QueueOptions("bench", max_depth=1_000_000)
PAYLOAD = Int32Value(value=3)


async def empty(context: WorkContext) -> None:
    return None


def _worker(url: str) -> Worker:
    options = WorkerOptions("worker", concurrency=200, handlers={"empty": empty})
    return Worker(connect(url), QUEUE, options)


async def _produce(queue: WorkQueue) -> None:
    free = asyncio.Semaphore(PRODUCERS)

    async def add() -> None:
        async with free:
            await queue.enqueue("empty", PAYLOAD)

    await asyncio.gather(*(add() for _ in range(ITEMS)))


async def _until_done(queue: WorkQueue) -> None:
    while True:
        stats = await queue.stats()
        if stats.waiting + stats.pending + stats.delayed == 0:
            return
        await asyncio.sleep(0.01)


async def _throughput(url: str) -> tuple[float, float]:
    redis = connect(url)
    queue = WorkQueue(redis, QUEUE)
    await queue.enqueue("empty", PAYLOAD)
    await _until_done(queue)
    began = time.perf_counter()
    await _produce(queue)
    added = time.perf_counter()
    await _until_done(queue)
    done = time.perf_counter()
    await redis.aclose()
    return ITEMS / (added - began), ITEMS / (done - began)


async def _round_trip(url: str) -> float:
    redis = connect(url)
    queue = WorkQueue(redis, QUEUE)
    times = []
    async with WorkClient(redis) as client:
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            async with client.submit(queue, "empty", PAYLOAD) as submission:
                await submission.outcome()
                times.append(time.perf_counter() - began)
    await redis.aclose()
    return statistics.median(times) * 1000


async def _in_one_process(url: str) -> list[Figure]:
    worker = _worker(url)
    running = asyncio.create_task(worker.run())
    latency = await _round_trip(url)
    _, done = await _throughput(url)
    worker.stop()
    await running
    await worker.redis.aclose()
    return [
        Figure("empty items, enqueue to done, one process", done, "/s"),
        Figure("submit to outcome, p50, one process", latency * 1000, "µs"),
    ]


async def _serve(url: str, stopped: Connection) -> None:
    worker = _worker(url)
    asyncio.get_running_loop().add_reader(stopped.fileno(), worker.stop)
    await worker.run()
    await worker.redis.aclose()


def _serve_process(url: str, stopped: Connection) -> None:
    asyncio.run(_serve(url, stopped))


async def _in_two_processes(url: str) -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    stop, stopped = context.Pipe()
    process = context.Process(target=_serve_process, args=(url, stopped))
    process.start()
    try:
        latency = await _round_trip(url)
        enqueued, done = await _throughput(url)
    finally:
        stop.send(None)
        process.join()
    return [
        Figure("empty items, enqueue only, two processes", enqueued, "/s"),
        Figure("empty items, enqueue to done, two processes", done, "/s", at_least=5000),
        Figure("submit to outcome, p50, two processes", latency * 1000, "µs"),
    ]


def run() -> list[Figure]:
    """Items per second from enqueueing to done, and the time from submitting to the outcome."""
    with tempfile.TemporaryDirectory(prefix="bx-") as name:
        directory = Path(name)
        server = EmbeddedValkey(directory / "data", directory)
        server.start()
        url = server.url
        try:
            return [*asyncio.run(_in_one_process(url)), *asyncio.run(_in_two_processes(url))]
        finally:
            server.stop()
