"""Streams end when their server stops, whatever they are at."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from bxmesh.server.errors import MeshError
from bxmesh.server.open_streams import OpenStreams


async def _served(streams: OpenStreams, swallowed: int, ready: asyncio.Event) -> None:
    async with streams.stream():
        for _ in range(swallowed):
            # As a client does that loses a cancellation.
            with contextlib.suppress(asyncio.CancelledError):
                ready.set()
                await asyncio.sleep(60)
        ready.set()
        await asyncio.sleep(60)


@pytest.mark.parametrize("swallowed", [0, 1, 2])
async def test_a_stream_ends_even_if_a_cancellation_is_lost(swallowed: int) -> None:
    streams, ready = OpenStreams(), asyncio.Event()
    task = asyncio.create_task(_served(streams, swallowed, ready))
    await ready.wait()
    streams.end()
    async with asyncio.timeout(20):
        with pytest.raises(MeshError) as raised:
            await task
    assert raised.value.reason == "SERVER_STOPPING"
    assert not task.cancelled()
    with pytest.raises(MeshError):
        async with streams.stream():
            pass


async def test_a_caller_that_cancels_is_not_told_of_the_server() -> None:
    streams, ready = OpenStreams(), asyncio.Event()
    task = asyncio.create_task(_served(streams, 0, ready))
    await ready.wait()
    streams.end()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
