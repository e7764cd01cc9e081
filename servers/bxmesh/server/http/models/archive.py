"""Conversations that are kept: lists, search, figures, cleaning up."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from bxmesh.agent.v1 import conversation_archive_pb2 as pb
from bxmesh.client.names import EnumNames
from bxmesh.server.http.models.base import Asked, Integer, Moment, Name, Told, duration, seconds
from bxmesh.server.http.models.conversations import (
    STATES,
    Conversation,
    ConversationState,
    Labels,
)

__all__ = [
    "CleanupRequest",
    "CleanupResult",
    "ConversationPage",
    "ExportQuery",
    "Exported",
    "RecentQuery",
    "SearchPage",
    "SearchRequest",
    "Statistics",
    "StatisticsQuery",
]

SearchMode = Literal["text", "meaning", "both"]
_MODES = EnumNames(pb.SearchMode, "SEARCH_MODE_")
_PageSize = Annotated[Integer, Field(ge=0, le=1000)]
_PageToken = Annotated[str, Field(max_length=1024)]
_States = Annotated[tuple[ConversationState, ...], Field(max_length=8)]


class Filter(Asked):
    """Picks conversations. All that is set must hold."""

    states: _States = ()
    """In one of these states; left out means any."""
    labels: Labels = Field(default_factory=dict)
    """With all of these labels."""
    begun_after: Moment | None = None
    """Not begun before."""
    begun_before: Moment | None = None
    """Begun before."""
    owner: Name | None = None
    """Begun by this identity."""

    def to_message(self) -> pb.ConversationFilter:
        """Returns it as the mesh takes it."""
        return _filter(
            self.states, self.owner, self.begun_after, self.begun_before, labels=self.labels
        )


class _FilterQuery(Asked):
    state: _States = ()
    """In one of these states; may be repeated."""
    owner: Name | None = None
    """Begun by this identity."""
    begun_after: Moment | None = None
    """Not begun before."""
    begun_before: Moment | None = None
    """Begun before."""

    def to_message(self) -> pb.ConversationFilter:
        """Returns it as the mesh takes it."""
        return _filter(self.state, self.owner, self.begun_after, self.begun_before)


class RecentQuery(_FilterQuery):
    """Which conversations, newest first."""

    page_size: _PageSize = 0
    """At most so many; 0 means 100."""
    page_token: _PageToken = ""
    """The next_page_token of the page before."""


class ConversationPage(Told):
    """A page of conversations, without what was said."""

    conversations: list[Conversation]
    """The conversations of this page."""
    next_page_token: str
    """Asks for the next page; empty on the last."""

    @classmethod
    def from_message(cls, message: pb.ListConversationsResponse) -> ConversationPage:
        """Returns what a message holds."""
        return cls(
            conversations=[Conversation.from_message(one) for one in message.conversations],
            next_page_token=message.next_page_token,
        )


class SearchRequest(Asked):
    """What is looked for, and where."""

    query: str = Field(min_length=1, max_length=4096)
    """What."""
    mode: SearchMode | None = None
    """By words, by meaning, or both; left out means both."""
    filter: Filter | None = None
    """Only in these."""
    page_size: _PageSize = 0
    """At most so many; 0 means 100."""
    page_token: _PageToken = ""
    """The next_page_token of the page before."""

    def to_message(self) -> pb.SearchConversationsRequest:
        """Returns it as the mesh takes it."""
        return pb.SearchConversationsRequest(
            query=self.query,
            mode=_MODES.number(self.mode),
            filter=self.filter.to_message() if self.filter else None,
            page_size=self.page_size,
            page_token=self.page_token,
        )


class SearchResult(Told):
    """One place that fits."""

    conversation: Conversation
    """The conversation, without what was said."""
    turn: int
    """The turn; 0 for the question itself."""
    participant_id: str
    """Who said it; empty for the question."""
    snippet: str
    """The words around it."""
    score: float
    """How well it fits; only comparable within one answer."""


class SearchPage(Told):
    """A page of places, the best first."""

    results: list[SearchResult]
    """The places of this page."""
    next_page_token: str
    """Asks for the next page; empty on the last."""
    degraded: bool
    """Whether only words were looked for where meaning was to count too, as the embedding model or the
    vectors are away."""

    @classmethod
    def from_message(cls, message: pb.SearchConversationsResponse) -> SearchPage:
        """Returns what a message holds."""
        return cls(
            results=[
                SearchResult(
                    conversation=Conversation.from_message(one.conversation),
                    turn=one.turn,
                    participant_id=one.participant_id,
                    snippet=one.snippet,
                    score=one.score,
                )
                for one in message.results
            ],
            next_page_token=message.next_page_token,
            degraded=message.degraded,
        )


class StatisticsQuery(Asked):
    """Of which time."""

    period: float = Field(default=86400, ge=60, le=7_776_000)
    """How far back, in seconds."""

    def to_message(self) -> pb.GetConversationStatsRequest:
        """Returns it as the mesh takes it."""
        return pb.GetConversationStatsRequest(period=duration(self.period))


class ModelStatistics(Told):
    """The figures of one language model."""

    answers: int
    """Answers it gave."""
    errors: int
    """Answers it failed to give."""
    average_seconds: float
    """Mean time of an answer."""
    tokens: int
    """Tokens, both ways together."""


class Statistics(Told):
    """Figures of conversations."""

    total_conversations: int
    """Conversations that are kept."""
    today_conversations: int
    """Of these, those begun since midnight UTC."""
    recent_conversations: int
    """Of these, those begun in the period."""
    running_conversations: int
    """Under way now."""
    average_seconds: float
    """Mean time from begin to end, of those that ended in the period."""
    success_rate: float
    """Of those that ended in the period, the part with a consensus, 0 to 1; 0 without any."""
    answers: int
    """Answers in the period."""
    errors: int
    """Answers that failed in the period."""
    error_rate: float
    """Of both together the part that failed, 0 to 1; 0 without any."""
    models: dict[str, ModelStatistics]
    """By language model."""
    average_latency: float
    """Mean time of an answer, in seconds."""
    latency_p50: float
    """Time of an answer in seconds, the median."""
    latency_p95: float
    """The same, 95th percentile."""
    latency_p99: float
    """The same, 99th percentile."""
    open_circuits: list[str]
    """Circuits that are open now, by target; for operators."""

    @classmethod
    def from_message(cls, message: pb.GetConversationStatsResponse) -> Statistics:
        """Returns what a message holds."""
        return cls(
            total_conversations=message.total_conversations,
            today_conversations=message.today_conversations,
            recent_conversations=message.recent_conversations,
            running_conversations=message.running_conversations,
            average_seconds=seconds(message.average_duration),
            success_rate=message.success_rate,
            answers=message.answers,
            errors=message.errors,
            error_rate=message.error_rate,
            models={
                name: ModelStatistics(
                    answers=one.answers,
                    errors=one.errors,
                    average_seconds=seconds(one.average_duration),
                    tokens=one.tokens,
                )
                for name, one in message.models.items()
            },
            average_latency=seconds(message.average_latency),
            latency_p50=seconds(message.latency_p50),
            latency_p95=seconds(message.latency_p95),
            latency_p99=seconds(message.latency_p99),
            open_circuits=list(message.open_circuits),
        )


class CleanupRequest(Asked):
    """Which conversations are deleted, of those that have ended."""

    begun_before: Moment
    """Begun before."""
    begun_after: Moment | None = None
    """Not begun before."""
    states: _States = ()
    """In one of these states; left out means any that has ended."""
    labels: Labels = Field(default_factory=dict)
    """With all of these labels."""
    owner: Name | None = None
    """Begun by this identity."""
    validate_only: bool = False
    """Whether only to count."""

    def to_message(self) -> pb.ConversationFilter:
        """Returns the filter as the mesh takes it."""
        return _filter(
            self.states, self.owner, self.begun_after, self.begun_before, labels=self.labels
        )


class CleanupResult(Told):
    """What was deleted, or would be."""

    conversations: int
    """Conversations."""
    deleted_by_store: dict[str, int]
    """Things deleted per store."""


class ExportQuery(_FilterQuery):
    """Which conversations, oldest first."""

    resume_token: str = Field(default="", max_length=1024)
    """Where an export that broke off goes on: that of its last line."""


class Exported(Told):
    """One line of an export."""

    conversation: Conversation
    """With all that was said."""
    resume_token: str
    """Goes on after it."""


def _filter(
    states: tuple[ConversationState, ...],
    owner: str | None,
    begun_after: datetime | None,
    begun_before: datetime | None,
    **fields: Any,
) -> pb.ConversationFilter:
    message = pb.ConversationFilter(
        states=[STATES.number(state) for state in dict.fromkeys(states)],
        owner=owner or "",
        **fields,
    )
    for name, value in (("start_time", begun_after), ("end_time", begun_before)):
        if value is not None:
            getattr(message, name).FromDatetime(value)
    return message
