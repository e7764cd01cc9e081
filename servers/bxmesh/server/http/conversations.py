"""Conversations: begun, followed, looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.errors import BxmeshError
from bxmesh.client.trace import current_trace_id
from bxmesh.server.http.events import event_stream
from bxmesh.server.http.mesh import Caller
from bxmesh.server.http.models.archive import (
    CleanupRequest,
    CleanupResult,
    ConversationPage,
    Exported,
    ExportQuery,
    RecentQuery,
    SearchPage,
    SearchRequest,
    Statistics,
    StatisticsQuery,
)
from bxmesh.server.http.models.conversations import ChatRequest, Conversation
from bxmesh.server.http.models.events import Failed
from bxmesh.server.http.models.streams import ChatBody, StreamRequest
from bxmesh.server.http.operations import Call
from bxmesh.server.http.problems import invalid_value, problem_of

__all__ = [
    "JSON_LINES",
    "begin_stream",
    "chat",
    "cleanup",
    "continued",
    "export",
    "get",
    "recent",
    "search",
    "statistics",
    "stream",
]

JSON_LINES = "application/jsonl"

_LONGEST_REQUEST_ID = 128
_LARGEST_REVISION = 2**63


async def chat(call: Call) -> Response:
    """Begins a conversation and waits for its end, but no longer than anybody may."""
    body: ChatBody = call.body
    stub = call.mesh.link.conversations
    request = pb.StartConversationRequest(
        request_id=_request_id(call), spec=body.to_message(), detach=True
    )
    begun = (await call.mesh.unary(stub.StartConversation, request)).conversation
    longest = call.gateway.settings.request_timeout
    wait = longest if body.wait is None else min(body.wait, longest)
    ended = await _ended(call.mesh, begun.conversation_id, wait)
    conversation = Conversation.from_message(ended or begun)
    return Response(
        conversation.model_dump_json(),
        200 if ended else 202,
        {"location": f"/conversations/{conversation.conversation_id}"},
        "application/json",
    )


async def _ended(mesh: Caller, conversation_id: str, seconds: float) -> pb.Conversation | None:
    """Waits for the end of a conversation; returns None when that does not come in time."""
    request = pb.StreamConversationRequest(conversation_id=conversation_id, omit_deltas=True)
    try:
        async with (
            asyncio.timeout(seconds),
            mesh.stream(mesh.link.conversations.StreamConversation, request) as answers,
        ):
            async for answer in answers:
                if answer.event.HasField("ended"):
                    ended: pb.Conversation = answer.event.ended
                    return ended
    except TimeoutError:
        pass
    return None


async def begin_stream(call: Call) -> Response:
    """Begins a conversation and tells what happens in it."""
    body: ChatRequest = call.body
    request = pb.StreamConversationRequest(request_id=_request_id(call), spec=body.to_message())
    return await event_stream(call.mesh, request, call.gateway.settings.heartbeat)


async def stream(call: Call) -> Response:
    """Tells what happens in a conversation, after asking another question where one is given."""
    body: StreamRequest = call.body
    after, request_id = _last_event_id(call) or body.after_revision, _request_id(call)
    if body.message:
        after = await continued(call.mesh, call.name, body.message, body.turns, request_id)
    request = pb.StreamConversationRequest(
        conversation_id=call.name, after_revision=after, omit_deltas=body.omit_deltas
    )
    return await event_stream(call.mesh, request, call.gateway.settings.heartbeat)


async def continued(
    mesh: Caller, conversation_id: str, message: str, turns: int, request_id: str
) -> int:
    """Asks another question; returns the revision after which its answer comes."""
    stub = mesh.link.conversations
    before = await mesh.unary(
        stub.GetConversation, archive_pb.GetConversationRequest(conversation_id=conversation_id)
    )
    await mesh.unary(
        stub.SendConversationMessage,
        pb.SendConversationMessageRequest(
            request_id=request_id, conversation_id=conversation_id, message=message, turns=turns
        ),
    )
    revision: int = before.conversation.revision
    return revision


async def recent(call: Call) -> BaseModel:
    """Lists conversations, newest first."""
    query: RecentQuery = call.query
    request = archive_pb.ListConversationsRequest(
        filter=query.to_message(), page_size=query.page_size, page_token=query.page_token
    )
    return ConversationPage.from_message(
        await call.mesh.unary(call.mesh.link.conversations.ListConversations, request)
    )


async def get(call: Call) -> BaseModel:
    """Returns a conversation with all that was said."""
    request = archive_pb.GetConversationRequest(conversation_id=call.name)
    answer = await call.mesh.unary(call.mesh.link.conversations.GetConversation, request)
    return Conversation.from_message(answer.conversation)


async def search(call: Call) -> BaseModel:
    """Finds what was said."""
    body: SearchRequest = call.body
    stub = call.mesh.link.conversations
    return SearchPage.from_message(
        await call.mesh.unary(stub.SearchConversations, body.to_message())
    )


async def statistics(call: Call) -> BaseModel:
    """Counts conversations, answers, errors and times."""
    query: StatisticsQuery = call.query
    stub = call.mesh.link.conversations
    return Statistics.from_message(
        await call.mesh.unary(stub.GetConversationStats, query.to_message())
    )


async def cleanup(call: Call) -> BaseModel:
    """Deletes old conversations."""
    body: CleanupRequest = call.body
    request = archive_pb.PurgeConversationsRequest(
        request_id=_request_id(call), filter=body.to_message(), validate_only=body.validate_only
    )
    answer = await call.mesh.unary(call.mesh.link.conversations.PurgeConversations, request)
    return CleanupResult(
        conversations=answer.conversations, deleted_by_store=dict(answer.deleted_by_store)
    )


async def export(call: Call) -> Response:
    """Streams whole conversations, a line each."""
    query: ExportQuery = call.query
    request = archive_pb.ExportConversationsRequest(
        filter=query.to_message(), resume_token=query.resume_token
    )
    lines = _lines(call.mesh, request)
    try:
        # A refusal has a status of its own.
        first = await anext(lines, None)
    except BaseException:
        await lines.aclose()
        raise
    return StreamingResponse(
        _told(first, lines), media_type=JSON_LINES, headers={"cache-control": "no-store"}
    )


async def _lines(mesh: Caller, request: Any) -> Any:
    stub = mesh.link.conversations
    async with mesh.stream(stub.ExportConversations, request) as answers:
        async for answer in answers:
            line = Exported(
                conversation=Conversation.from_message(answer.conversation),
                resume_token=answer.resume_token,
            )
            yield line.model_dump_json().encode() + b"\n"


async def _told(first: bytes | None, lines: Any) -> AsyncIterator[bytes]:
    async with aclosing(lines):
        try:
            if first is not None:
                yield first
            async for line in lines:
                yield line
        except BxmeshError as error:
            failed = Failed(problem=problem_of(error, current_trace_id()))
            yield failed.model_dump_json().encode() + b"\n"


def _request_id(call: Call) -> str:
    given = call.request.headers.get("idempotency-key")
    if given is None:
        return uuid4().hex
    if not 1 <= len(given) <= _LONGEST_REQUEST_ID:
        raise invalid_value("Idempotency-Key", f"takes 1 to {_LONGEST_REQUEST_ID} characters")
    return given


def _last_event_id(call: Call) -> int:
    given = call.request.headers.get("last-event-id", "0")
    if not (given.isascii() and given.isdigit()) or int(given[:20]) >= _LARGEST_REVISION:
        raise invalid_value("Last-Event-ID", "is the number of an event")
    return int(given[:20])
