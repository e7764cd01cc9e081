"""streaq: so many empty tasks, enqueued and run in one process. Prints them per second."""

import os
import sys
import time

import anyio
from streaq import Worker

ITEMS = int(sys.argv[2])
worker = Worker(redis_url=sys.argv[1], concurrency=200, queue_name="bench-streaq")
done = 0
all_done = anyio.Event()


@worker.task(ttl=0)
async def empty(number: int) -> None:
    global done
    done += 1
    if done == ITEMS:
        all_done.set()


async def main() -> None:
    room = anyio.Semaphore(100)

    async def add(number: int) -> None:
        async with room:
            await empty.enqueue(number)

    async with anyio.create_task_group() as running:
        await running.start(worker.run_async)
        began = time.perf_counter()
        async with anyio.create_task_group() as adding:
            for number in range(ITEMS):
                adding.start_soon(add, number)
        await all_done.wait()
        print(ITEMS / (time.perf_counter() - began), flush=True)
        os._exit(0)


anyio.run(main)
