"""Conversations as streams of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.errors import BxmeshError
from bxmesh.client.trace import current_trace_id
from bxmesh.server.http.mesh import Caller
from bxmesh.server.http.models.events import Failed, event_of
from bxmesh.server.http.problems import problem_of

__all__ = ["EVENT_STREAM", "event_stream", "events"]

EVENT_STREAM = "text/event-stream"

_HEARTBEAT = b": still here\n\n"
_FIRST_SECONDS = 1.0
_HEADERS = {
    "cache-control": "no-store",
    # Proxies such as nginx would gather what is meant to come at once.
    "x-accel-buffering": "no",
}


async def events(
    mesh: Caller, request: pb.StreamConversationRequest
) -> AsyncGenerator[BaseModel, None]:
    """Yields what happens in a conversation to its end. Raises BxmeshError."""
    stub = mesh.link.conversations
    async with mesh.stream(stub.StreamConversation, request) as answers:
        async for answer in answers:
            event = event_of(answer.event)
            if event is not None:
                yield event


async def event_stream(
    mesh: Caller, request: pb.StreamConversationRequest, heartbeat: float
) -> Response:
    """Returns a response of events; raises BxmeshError for a conversation that cannot be followed.

    What goes wrong later is told as the last event.
    """
    async with AsyncExitStack() as stack:
        source = events(mesh, request)
        stack.push_async_callback(source.aclose)
        first = asyncio.ensure_future(anext(source, None))
        stack.push_async_callback(_end, first)
        # So that a refusal has a status of its own. A quiet conversation is begun without an event.
        await asyncio.wait({first}, timeout=_FIRST_SECONDS)
        if first.done():
            first.result()
        return _EventResponse(_told(source, first, heartbeat), stack.pop_all())


class _EventResponse(StreamingResponse):
    """Closes what its events come from, even where the client has left before the first."""

    def __init__(self, body: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        super().__init__(body, media_type=EVENT_STREAM, headers=_HEADERS)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def _told(
    source: AsyncGenerator[BaseModel, None],
    upcoming: asyncio.Future[BaseModel | None],
    heartbeat: float,
) -> AsyncIterator[bytes]:
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=heartbeat)
            if not upcoming.done():
                yield _HEARTBEAT
                continue
            event = upcoming.result()
            if event is None:
                return
            yield _frame(event)
            upcoming = asyncio.ensure_future(anext(source, None))
    except BxmeshError as error:
        yield _frame(Failed(problem=problem_of(error, current_trace_id())))
    finally:
        await _end(upcoming)


async def _end(task: asyncio.Future[BaseModel | None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _frame(event: BaseModel) -> bytes:
    kind = getattr(event, "type", "message")
    revision = getattr(event, "revision", 0)
    place = f"id: {revision}\n" if revision else ""
    # JSON has no line breaks outside of its texts, where they are escaped.
    return f"{place}event: {kind}\ndata: {event.model_dump_json()}\n\n".encode()
