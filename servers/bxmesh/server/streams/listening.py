"""Hearing what is published, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from redis.asyncio import Redis

from bxmesh.server.streams.connection import REDIS_ERRORS

_log = logging.getLogger(__name__)

_LISTEN_SECONDS = 30.0
_PAUSE_SECONDS = 0.2

Hear = Callable[[str, bytes], None]
"""Takes a channel and what was published on it."""


def _nothing() -> None:
    pass


async def listen(
    redis: Redis, channels: tuple[str, ...], hear: Hear, begun: Callable[[], None] = _nothing
) -> NoReturn:
    """Hears what is published on channels until it is cancelled, however often Redis goes away.

    `begun` is called whenever the subscription has been made anew: what was published before that
    was not heard.
    """
    while True:
        try:
            async with redis.pubsub() as subscription:
                await subscription.subscribe(*channels)
                while True:
                    message = await subscription.get_message(timeout=_LISTEN_SECONDS)
                    if message is None:
                        continue
                    if message["type"] == "message":
                        hear(message["channel"].decode(), message["data"])
                    else:
                        begun()
        except REDIS_ERRORS as error:
            _log.info("nothing is heard on %s: %s", ", ".join(channels), error)
            await asyncio.sleep(_PAUSE_SECONDS)
