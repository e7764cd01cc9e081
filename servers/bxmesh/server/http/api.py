"""Everything that can be asked for over HTTP."""

from __future__ import annotations

from bxmesh.server.http import conversations, geometry, health
from bxmesh.server.http.events import EVENT_STREAM
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
from bxmesh.server.http.models.events import Event
from bxmesh.server.http.models.geometry import GeometryReport, ReportQuery
from bxmesh.server.http.models.health import Health, HealthDetails
from bxmesh.server.http.models.streams import ChatBody, StreamRequest
from bxmesh.server.http.operations import Answer, Header, Operation

__all__ = ["OPERATIONS"]

_IDEMPOTENCY_KEY = Header(
    "Idempotency-Key",
    "Identifies the request: the same key from the same caller gets the first answer.",
    {"type": "string", "minLength": 1, "maxLength": 128},
)
_LAST_EVENT_ID = Header(
    "Last-Event-ID",
    "Only events after this one; browsers send it when they come back.",
    {"type": "string", "pattern": "^[0-9]{1,18}$"},
)
_LOCATION = Header("Location", "Where the conversation is.")
_EVENTS = Answer(
    "Events as they happen; `data` is one of these as JSON, `event` its type, `id` its revision. A "
    "comment comes when nothing else does.",
    Event,
    EVENT_STREAM,
)

OPERATIONS = (
    Operation(
        "POST",
        "/chat",
        "chat",
        "Begin a conversation and wait for what comes out.",
        conversations.chat,
        {
            200: Answer("The conversation at its end.", Conversation, headers=(_LOCATION,)),
            202: Answer("It goes on; ask for it later.", Conversation, headers=(_LOCATION,)),
        },
        "conversations",
        body=ChatBody,
        headers=(_IDEMPOTENCY_KEY,),
    ),
    Operation(
        "POST",
        "/stream/new",
        "begin_stream",
        "Begin a conversation and follow it.",
        conversations.begin_stream,
        {200: _EVENTS},
        "conversations",
        body=ChatRequest,
        headers=(_IDEMPOTENCY_KEY,),
        streams=True,
    ),
    Operation(
        "POST",
        "/stream/{id}",
        "stream",
        "Follow a conversation, after asking another question where one is given.",
        conversations.stream,
        {200: _EVENTS},
        "conversations",
        body=StreamRequest,
        body_optional=True,
        headers=(_IDEMPOTENCY_KEY, _LAST_EVENT_ID),
        streams=True,
    ),
    Operation(
        "GET",
        "/conversations/recent",
        "recent",
        "List conversations, newest first.",
        conversations.recent,
        {200: Answer("A page of conversations, without what was said.", ConversationPage)},
        "conversations",
        query=RecentQuery,
    ),
    Operation(
        "POST",
        "/conversations/search",
        "search",
        "Find what was said, by words and by meaning.",
        conversations.search,
        {200: Answer("A page of places, the best first.", SearchPage)},
        "conversations",
        body=SearchRequest,
    ),
    Operation(
        "GET",
        "/conversations/{id}",
        "conversation",
        "Read a conversation.",
        conversations.get,
        {200: Answer("The conversation with all that was said.", Conversation)},
        "conversations",
    ),
    Operation(
        "GET",
        "/statistics",
        "statistics",
        "Count conversations, answers, errors and times.",
        conversations.statistics,
        {200: Answer("The figures.", Statistics)},
        "conversations",
        query=StatisticsQuery,
    ),
    Operation(
        "POST",
        "/admin/cleanup",
        "cleanup",
        "Delete old conversations. Takes an operator.",
        conversations.cleanup,
        {200: Answer("What was deleted, or would be.", CleanupResult)},
        "administration",
        body=CleanupRequest,
        headers=(_IDEMPOTENCY_KEY,),
    ),
    Operation(
        "GET",
        "/admin/export",
        "export",
        "Export conversations as JSON Lines.",
        conversations.export,
        {
            200: Answer(
                "A line for each conversation, oldest first.", Exported, conversations.JSON_LINES
            )
        },
        "administration",
        query=ExportQuery,
        streams=True,
    ),
    Operation(
        "POST",
        "/geometry/report",
        "geometry_report",
        "Say how good a model is.",
        geometry.report,
        {200: Answer("The report.", GeometryReport)},
        "geometry",
        "The body is a PDB or mmCIF file, or a form with the files `model` and `reflections`.",
        query=ReportQuery,
        files=True,
    ),
    Operation(
        "GET",
        "/health",
        "health",
        "Say whether the mesh serves.",
        health.health,
        {
            200: Answer("It does.", Health),
            503: Answer("It does not.", Health),
        },
        "health",
        open=True,
    ),
    Operation(
        "GET",
        "/health/detailed",
        "detailed_health",
        "Say how good each component is.",
        health.detailed_health,
        {200: Answer("States for everybody, details for operators.", HealthDetails)},
        "health",
    ),
)
"""The operations. Of two paths that fit, the first one counts."""
