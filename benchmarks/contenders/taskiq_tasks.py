"""taskiq-redis: so many empty tasks, enqueued and run in one process. Prints them per second."""

import asyncio
import os
import sys
import time

from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker


async def main(url: str, items: int) -> None:
    broker = RedisStreamBroker(url, queue_name="bench-taskiq")
    done = 0
    all_done = asyncio.Event()

    @broker.task
    async def empty(number: int) -> None:
        nonlocal done
        done += 1
        if done == items:
            all_done.set()

    await broker.startup()
    broker.is_worker_process = True
    receiver = Receiver(broker, max_async_tasks=200, run_startup=False)
    listening = asyncio.create_task(receiver.listen(asyncio.Event()))
    assert listening
    room = asyncio.Semaphore(100)

    async def add(number: int) -> None:
        async with room:
            await empty.kiq(number)

    began = time.perf_counter()
    await asyncio.gather(*map(add, range(items)), all_done.wait())
    print(items / (time.perf_counter() - began), flush=True)
    # Shutting down in an orderly way takes longer than the tasks.
    os._exit(0)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
