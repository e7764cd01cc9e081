"""Running a handler on an item, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, deadline_exceeded, internal
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.queue import cancelled
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

# What is larger belongs into a bundle.
_MOST_RESULT_BYTES = 64 << 20


class WorkContext:
    """What a handler knows of the item it is at."""

    def __init__(self, redis: Redis, held: HeldEntry) -> None:
        self.item = held.item
        self.attempt = held.attempt
        self._redis = redis
        self._held = held

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more; for handlers that leave the event loop."""
        return self._held.over

    async def progress(self, message: Message) -> None:
        """Tells whoever waits, if anybody, how far it is; it may be lost."""
        if self.item.reply_to:
            event = work_pb2.WorkEvent(item_id=self.item.item_id)
            event.progress.Pack(message)
            with contextlib.suppress(*REDIS_ERRORS):
                await self._redis.publish(self.item.reply_to, event.SerializeToString())


Handler = Callable[[WorkContext], Awaitable[Message | None]]
"""Does an item and returns its result. A MeshError whose code blames the input ends it at once,
any other error is tried again, until the item becomes a dead letter. It must not block the event
loop, or the lease is lost; when it is cancelled, nobody waits any more."""


def remaining_seconds(item: work_pb2.WorkItem) -> float | None:
    """Seconds until an item's deadline; None when it has none."""
    if not item.HasField("deadline"):
        return None
    return float(item.deadline.ToNanoseconds()) / 1e9 - time.time()


async def handle(
    handler: Handler, held: HeldEntry, context: WorkContext, remaining: float | None
) -> tuple[AnyMessage | None, MeshError | None]:
    """Runs a handler to its result or error; only ends cancelled when the worker itself is."""
    task = asyncio.current_task()
    assert task is not None
    timeout = asyncio.timeout(remaining)
    try:
        async with timeout:
            held.in_handler = True
            try:
                return _packed(await handler(context)), None
            finally:
                held.in_handler = False
    except asyncio.CancelledError:
        # The worker cancels once to interrupt the work, and once when it goes itself.
        if task.cancelling() > int(held.over):
            raise
        if not held.over:
            return None, internal("The handler gave up.")
        task.uncancel()
        return None, cancelled()
    except MeshError as error:
        return None, error
    except Exception as error:
        if isinstance(error, TimeoutError) and timeout.expired():
            held.over = True
            return None, deadline_exceeded("The deadline passed while the work was done.")
        _log.exception("the handler of %s failed", held.item.kind)
        return None, internal(f"A worker failed at {held.item.kind}; its log says why.")


def _packed(result: Message | None) -> AnyMessage | None:
    if result is None:
        return None
    packed = AnyMessage()
    packed.Pack(result)
    if packed.ByteSize() > _MOST_RESULT_BYTES:
        raise MeshError(
            grpc.StatusCode.OUT_OF_RANGE,
            "RESULT_TOO_LARGE",
            f"The result of {packed.ByteSize()} bytes is too large to be answered.",
        )
    return packed
