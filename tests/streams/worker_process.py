"""A worker for tests, to be killed and frozen: URL WORKER_ID QUEUE LEASE SLOTS."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys

from google.protobuf.wrappers_pb2 import StringValue

from bxmesh.server.errors import invalid_argument, unavailable
from bxmesh.server.streams import QueueOptions, WorkContext, Worker, WorkerOptions, connect

STARTED = "started"
"""A list: `item id` of each attempt that began at work of the kind `hold`."""
RELEASE = "release"
"""A key: while it exists, `hold` may end."""


async def main(url: str, worker_id: str, queue: str, lease: float, slots: int) -> None:
    redis = connect(url)

    async def note(context: WorkContext) -> StringValue:
        return StringValue(value=worker_id)

    async def hold(context: WorkContext) -> StringValue:
        await redis.rpush(STARTED, context.item.item_id)
        while not await redis.exists(RELEASE):  # noqa: ASYNC110 - a key has no event
            await asyncio.sleep(0.02)
        return StringValue(value=worker_id)

    async def fail_once(context: WorkContext) -> StringValue:
        if context.attempt == 1:
            raise unavailable("Not yet.")
        return StringValue(value=worker_id)

    async def fail(context: WorkContext) -> StringValue:
        raise unavailable("Never.")

    async def refuse(context: WorkContext) -> StringValue:
        raise invalid_argument("payload", "It is wrong.")

    async def crash(context: WorkContext) -> StringValue:
        if context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return StringValue(value=worker_id)

    handlers = {
        handler.__name__: handler for handler in (note, hold, fail_once, fail, refuse, crash)
    }
    worker = Worker(
        redis,
        QueueOptions(queue, lease=lease, retry_base=0.02, retry_cap=0.1),
        WorkerOptions(worker_id, concurrency=slots, handlers=handlers, drain_grace=5.0),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    print("running", flush=True)
    await worker.run()
    await redis.aclose()
    print(json.dumps(dataclasses.asdict(worker.counters)), flush=True)


if __name__ == "__main__":
    url, worker_id, queue, lease, slots = sys.argv[1:]
    asyncio.run(main(url, worker_id, queue, float(lease), int(slots)))
