"""Keeping the log while a server runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis

from bxmesh.server.activity.depths import Depths
from bxmesh.server.activity.feeds import Feed, journal, registry
from bxmesh.server.activity.log import ActivityLog
from bxmesh.server.activity.recorder import OFF, Activity, Recorder
from bxmesh.server.errors import MeshError
from bxmesh.server.settings import Settings
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.mailboxes import QUEUE

__all__ = ["recording"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_MINUTE_SECONDS = 60.0
_LAST_SECONDS = 2.0


@asynccontextmanager
async def recording(
    settings: Settings, redis: Redis, queues: Sequence[WorkQueue] = ()
) -> AsyncIterator[Activity]:
    """What to tell of what happens, within a block: `OFF` unless the settings name a directory.

    `queues` are those of work beside the mailboxes. Raises OSError for a directory of no use.
    """
    if settings.activity_log is None:
        yield OFF
        return
    log = ActivityLog(
        settings.activity_log,
        days=settings.activity_log_days,
        most_bytes=settings.activity_log_bytes,
    )
    await asyncio.to_thread(log.start)
    recorder = Recorder(log)
    feeds = [registry(redis, recorder.record)]
    feeds += [
        journal(redis, name, recorder.record)
        for name in (QUEUE, *(queue.options.name for queue in queues))
    ]
    with suppress(*REDIS_ERRORS):
        for feed in feeds:
            await feed.join()
    keepers = (
        asyncio.create_task(_follow(feeds)),
        asyncio.create_task(_measure(recorder, Depths(redis, queues))),
    )
    try:
        yield recorder
    finally:
        await end_tasks(*keepers)
        with suppress(TimeoutError, *REDIS_ERRORS):
            async with asyncio.timeout(_LAST_SECONDS):
                await _catch_up(feeds)
        await asyncio.to_thread(log.stop)


async def _catch_up(feeds: Sequence[Feed]) -> None:
    for feed in feeds:
        await feed.catch_up()


async def _follow(feeds: Sequence[Feed]) -> None:
    while True:
        try:
            await _catch_up(feeds)
        except REDIS_ERRORS as error:
            _log.info("the activity log waits: %s", error)
        await asyncio.sleep(_LOOK_SECONDS)


async def _measure(recorder: Recorder, depths: Depths) -> None:
    while True:
        # On the minute, so that the lines of several processes belong together.
        await asyncio.sleep(_MINUTE_SECONDS - time.time() % _MINUTE_SECONDS)
        try:
            found = await depths.look()
        except MeshError as error:
            _log.info("the activity log has no depths: %s", error.message)
            found = {}
        recorder.log.add(recorder.minute.end(found))
