"""Parts of the stream tests: queues with short leases, workers here and elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue
from redis.asyncio import Redis

from bxmesh.server.streams import Handler, QueueOptions, Worker, WorkerOptions

PATIENCE = 30.0


def options(name: str = "test", **changes: Any) -> QueueOptions:
    """A queue for hasty tests."""
    return QueueOptions(
        name, **{"lease": 0.6, "retry_base": 0.02, "retry_cap": 0.1, "max_attempts": 3, **changes}
    )


async def until(condition: Callable[..., Any]) -> Any:
    """Waits until a condition, awaited if need be, holds; returns what it returned."""
    async with asyncio.timeout(PATIENCE):
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(
    redis: Redis,
    queue: QueueOptions,
    handlers: Mapping[str, Handler],
    worker_id: str = "worker",
    **changes: Any,
) -> AsyncIterator[Worker]:
    """A worker in this process, drained at the end."""
    worker = Worker(redis, queue, WorkerOptions(worker_id, handlers=handlers, **changes))
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        async with asyncio.timeout(PATIENCE):
            await task


def text(value: str = "") -> StringValue:
    """A payload."""
    return StringValue(value=value)


def read_text(message: Any) -> str:
    """The text in a packed payload or result."""
    value = StringValue()
    assert message.Unpack(value)
    return str(value.value)


class WorkerProcess:
    """A worker in a process of its own; see worker_process.py for what it can do."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(
        cls, url: str, worker_id: str, *, queue: str = "test", lease: float = 0.6, slots: int = 4
    ) -> WorkerProcess:
        """Starts one and waits until it runs."""
        script = Path(__file__).with_name("worker_process.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            *(url, worker_id, queue, str(lease), str(slots)),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"running\n"
        return cls(process)

    async def kill(self) -> None:
        """Ends it without a farewell."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def freeze(self) -> None:
        """Stops the process; it learns nothing of it."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    async def stop(self) -> dict[str, Any]:
        """Drains it; returns its counters."""
        self.process.terminate()
        async with asyncio.timeout(PATIENCE):
            out, _ = await self.process.communicate()
        counters: dict[str, Any] = json.loads(out)
        return counters
