"""Conversations, and what came out of them."""

# ruff: noqa: N818 - ConversationFailed is named like TaskFailed

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

import grpc

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.conversations.participants import Participant
from bxmesh.client.errors import BxmeshError, FailedPrecondition, from_status
from bxmesh.client.functions.json_values import from_value
from bxmesh.client.names import EnumNames

__all__ = [
    "METHODS",
    "STATES",
    "AnswerGroup",
    "Consensus",
    "ConsensusMethod",
    "Conversation",
    "ConversationFailed",
    "ConversationState",
    "Turn",
]

ConversationState = Literal["pending", "running", "completed", "failed", "cancelled"]
ConsensusMethod = Literal["majority", "weighted", "ranked", "judge", "numeric", "structured"]

STATES = EnumNames(pb.ConversationState, "CONVERSATION_STATE_")
METHODS = EnumNames(pb.ConsensusMethod, "CONSENSUS_METHOD_")


class ConversationFailed(BxmeshError):
    """A conversation ended without an answer; code and reason are those of what went wrong."""

    def __init__(self, conversation: Conversation) -> None:
        error, name = conversation.error, conversation.conversation_id
        super().__init__(
            error.message if error else f"conversation {name} is {conversation.state}",
            code=error.code if error else grpc.StatusCode.UNKNOWN,
            reason=error.reason if error else f"CONVERSATION_{conversation.state.upper()}",
            metadata={**(error.metadata if error else {}), "conversation_id": name},
            field_violations=error.field_violations if error else (),
            trace_id=conversation.trace_id,
        )
        self.conversation = conversation
        """The conversation as it ended."""


@dataclass(frozen=True)
class Turn:
    """One answer of one participant."""

    turn: int
    """The turn, from 1."""
    participant_id: str
    """Who answers; empty for the next question of whoever continues the conversation."""
    text: str
    """What was said."""
    answer: Any
    """The answer as data; None when the participant gave none."""
    confidence: float | None
    """How sure the participant is, 0 to 1; None when it did not say."""
    error: BxmeshError | None = field(compare=False)
    """Why there is no answer."""
    evidence: tuple[str, ...]
    """What the answer rests on: bundle ids, figures."""
    model: str
    """The language model that answered; empty for none."""
    input_tokens: int
    """Tokens read."""
    output_tokens: int
    """Tokens written."""
    start_time: datetime | None
    """When it began."""
    end_time: datetime | None
    """When it ended."""

    @classmethod
    def from_message(cls, message: pb.Turn) -> Turn:
        """Returns the answer that the message holds."""
        return cls(
            turn=message.turn,
            participant_id=message.participant_id,
            text=message.text,
            answer=from_value(message.answer),
            confidence=message.confidence if message.HasField("confidence") else None,
            error=from_status(message.error) if message.error.code else None,
            evidence=tuple(message.evidence),
            model=message.model,
            input_tokens=message.input_tokens,
            output_tokens=message.output_tokens,
            start_time=from_timestamp(message.start_time),
            end_time=from_timestamp(message.end_time),
        )


@dataclass(frozen=True)
class AnswerGroup:
    """Answers that mean the same."""

    answer: Any
    """The answer that stands for them."""
    participant_ids: tuple[str, ...]
    """Who gave it."""
    share: float
    """The part of the votes it has, 0 to 1."""

    @classmethod
    def from_message(cls, message: pb.AnswerGroup) -> AnswerGroup:
        """Returns the group that the message holds."""
        return cls(from_value(message.answer), tuple(message.participant_ids), message.share)


@dataclass(frozen=True)
class Consensus:
    """The one answer, and how it was reached."""

    answer: Any
    """The answer: a text, a number or data."""
    text: str
    """The answer in words."""
    confidence: float
    """How sure it is, 0 to 1."""
    method: ConsensusMethod
    """The method by which it was reached."""
    groups: tuple[AnswerGroup, ...]
    """All answers, the one with most votes first."""
    tie_break: str
    """How a tie was broken: confidence, judge or first_stable; empty without a tie."""
    spread: float | None
    """Half the distance between the quartiles of numeric answers; None for others."""
    evidence: tuple[str, ...]
    """What it rests on: bundle ids, figures."""
    turn: int
    """The turn after which it was reached."""

    @classmethod
    def from_message(cls, message: pb.Consensus) -> Consensus:
        """Returns the answer that the message holds."""
        return cls(
            answer=from_value(message.answer),
            text=message.text,
            confidence=message.confidence,
            method=cast(ConsensusMethod, METHODS.name(message.method)),
            groups=tuple(map(AnswerGroup.from_message, message.groups)),
            tie_break=message.tie_break,
            spread=message.spread if message.HasField("spread") else None,
            evidence=tuple(message.evidence),
            turn=message.turn,
        )


@dataclass(frozen=True)
class Conversation:
    """A conversation as it stood at one revision."""

    conversation_id: str
    """The name."""
    title: str
    """The title; the beginning of the question unless one was given."""
    question: str
    """What was asked first."""
    state: ConversationState
    """Where it stands."""
    participants: tuple[Participant, ...]
    """Who takes part."""
    turns: tuple[Turn, ...]
    """What was said, in order; empty in lists."""
    consensus: Consensus | None
    """What came out, or is on the way to; None without any. See `outcome`."""
    error: BxmeshError | None = field(compare=False)
    """Why it ended without a consensus."""
    owner: str
    """The identity that began it."""
    labels: Mapping[str, str]
    """For the caller's own use."""
    bundle_ids: tuple[str, ...]
    """The bundles that it is about."""
    create_time: datetime | None
    """When it was begun."""
    update_time: datetime | None
    """When it changed last."""
    end_time: datetime | None
    """When it ended."""
    expire_time: datetime | None
    """When it is forgotten; None for not by itself."""
    revision: int
    """The number of its last event."""
    trace_id: str
    """The trace it belongs to, 32 hexadecimal digits."""
    message: pb.Conversation = field(repr=False, compare=False)
    """The message of the contract."""

    @classmethod
    def from_message(cls, message: pb.Conversation) -> Conversation:
        """Returns the conversation that the message describes."""
        consensus = message.consensus
        return cls(
            conversation_id=message.conversation_id,
            title=message.spec.title,
            question=message.spec.message,
            state=cast(ConversationState, STATES.name(message.state)),
            participants=tuple(map(Participant.from_message, message.participants)),
            turns=tuple(map(Turn.from_message, message.turns)),
            consensus=Consensus.from_message(consensus) if message.HasField("consensus") else None,
            error=from_status(message.error) if message.error.code else None,
            owner=message.owner,
            labels=dict(message.spec.labels),
            bundle_ids=tuple(message.spec.bundle_ids),
            create_time=from_timestamp(message.create_time),
            update_time=from_timestamp(message.update_time),
            end_time=from_timestamp(message.end_time),
            expire_time=from_timestamp(message.expire_time),
            revision=message.revision,
            trace_id=message.trace_id,
            message=message,
        )

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("pending", "running")

    @property
    def duration(self) -> float | None:
        """Seconds from its beginning to its end; None before that."""
        if self.create_time is None or self.end_time is None:
            return None
        return (self.end_time - self.create_time).total_seconds()

    @property
    def outcome(self) -> Consensus:
        """What came out. Raises ConversationFailed when nothing did, FailedPrecondition before its
        end."""
        if self.state == "completed" and self.consensus is not None:
            return self.consensus
        if self.done:
            raise ConversationFailed(self)
        raise FailedPrecondition(
            f"conversation {self.conversation_id} is {self.state}: wait for its end",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            reason="CONVERSATION_NOT_ENDED",
        )

    @property
    def value(self) -> Any:
        """The answer. Raises like `outcome`."""
        return self.outcome.answer
