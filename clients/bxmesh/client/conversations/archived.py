"""What is kept of conversations: places that were found, exports, purges and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from google.protobuf.duration_pb2 import Duration

from bxmesh.agent.v1 import conversation_archive_pb2 as pb
from bxmesh.client.conversations.conversation import Conversation
from bxmesh.client.names import EnumNames

__all__ = [
    "MODES",
    "ConversationStats",
    "Exported",
    "ModelStats",
    "Purged",
    "SearchMode",
    "SearchResult",
]

SearchMode = Literal["text", "meaning", "both"]

MODES = EnumNames(pb.SearchMode, "SEARCH_MODE_")


@dataclass(frozen=True)
class SearchResult:
    """One place that fits."""

    conversation: Conversation
    """The conversation, without what was said."""
    turn: int
    """The turn; 0 for the question itself."""
    participant_id: str
    """Who said it; empty for a question."""
    snippet: str
    """The words around it."""
    score: float
    """How well it fits; only comparable within one search."""
    degraded: bool
    """Whether it was found by words alone where meaning was to count too, as the mesh's embedding model
    or its vectors are away."""

    @classmethod
    def from_message(cls, message: pb.SearchResult, *, degraded: bool) -> SearchResult:
        """Returns the place that the message names."""
        return cls(
            Conversation.from_message(message.conversation),
            message.turn,
            message.participant_id,
            message.snippet,
            message.score,
            degraded,
        )


@dataclass(frozen=True)
class Exported:
    """One conversation of an export."""

    conversation: Conversation
    """The conversation with all that was said."""
    resume_token: str
    """Goes on after it."""

    @classmethod
    def from_message(cls, message: pb.ExportConversationsResponse) -> Exported:
        """Returns what the message holds."""
        return cls(Conversation.from_message(message.conversation), message.resume_token)


@dataclass(frozen=True)
class Purged:
    """What was deleted, or would be."""

    conversations: int
    """Conversations."""
    deleted_by_store: Mapping[str, int]
    """Things per store: memory, database, vectors."""

    @classmethod
    def from_message(cls, message: pb.PurgeConversationsResponse) -> Purged:
        """Returns what the message counts."""
        return cls(message.conversations, dict(sorted(message.deleted_by_store.items())))


@dataclass(frozen=True)
class ModelStats:
    """Figures of one language model."""

    answers: int
    """Answers it gave."""
    errors: int
    """Answers it failed to give, of those for which it was asked by its name."""
    average_duration: float
    """Mean time of an answer, in seconds."""
    tokens: int
    """Tokens, both ways together."""

    @classmethod
    def from_message(cls, message: pb.ModelStats) -> ModelStats:
        """Returns the figures that the message holds."""
        return cls(
            message.answers, message.errors, _seconds(message.average_duration), message.tokens
        )


@dataclass(frozen=True)
class ConversationStats:
    """Figures of the conversations that the caller sees."""

    total_conversations: int
    """Conversations that are kept."""
    today_conversations: int
    """Of these, those begun since midnight UTC."""
    recent_conversations: int
    """Of these, those begun in the period."""
    running_conversations: int
    """Under way now."""
    average_duration: float
    """Mean time from begin to end in seconds, of those that ended in the period."""
    success_rate: float
    """Of those that ended in the period, the part with a consensus, 0 to 1; 0 without any."""
    answers: int
    """Answers in the period."""
    errors: int
    """Answers that failed in the period."""
    error_rate: float
    """Of both together the part that failed, 0 to 1; 0 without any."""
    models: Mapping[str, ModelStats]
    """By language model."""
    average_latency: float
    """Mean time of an answer, in seconds."""
    latency_p50: float
    """Time of an answer in seconds, the median."""
    latency_p95: float
    """The same, 95th percentile."""
    latency_p99: float
    """The same, 99th percentile."""
    open_circuits: tuple[str, ...]
    """Whose circuits are open now; for operators."""

    @classmethod
    def from_message(cls, message: pb.GetConversationStatsResponse) -> ConversationStats:
        """Returns the figures that the message holds."""
        return cls(
            total_conversations=message.total_conversations,
            today_conversations=message.today_conversations,
            recent_conversations=message.recent_conversations,
            running_conversations=message.running_conversations,
            average_duration=_seconds(message.average_duration),
            success_rate=message.success_rate,
            answers=message.answers,
            errors=message.errors,
            error_rate=message.error_rate,
            models={
                name: ModelStats.from_message(message.models[name])
                for name in sorted(message.models)
            },
            average_latency=_seconds(message.average_latency),
            latency_p50=_seconds(message.latency_p50),
            latency_p95=_seconds(message.latency_p95),
            latency_p99=_seconds(message.latency_p99),
            open_circuits=tuple(message.open_circuits),
        )


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
