"""What happens in a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.conversations.conversation import Consensus, Conversation, Turn
from bxmesh.client.errors import BxmeshError, from_status

__all__ = ["ConversationEvent", "EventKind", "ParticipantLeft", "TextDelta"]

EventKind = Literal["started", "delta", "answered", "turn_ended", "consensus", "left", "ended"]


@dataclass(frozen=True)
class TextDelta:
    """A piece of an answer that is being written."""

    turn: int
    """The turn."""
    participant_id: str
    """Who writes."""
    text: str
    """What comes next."""


@dataclass(frozen=True)
class ParticipantLeft:
    """Someone is left out from now on."""

    participant_id: str
    """Who."""
    reason: BxmeshError = field(compare=False)
    """Why."""


@dataclass(frozen=True)
class ConversationEvent:
    """One thing that happened; of the fields below `kind` the one of that name is set."""

    conversation_id: str
    """The conversation."""
    revision: int
    """The revision to go on after."""
    time: datetime | None
    """When."""
    kind: EventKind
    """What happened."""
    started: Conversation | None = None
    """It began, or goes on with another question."""
    delta: TextDelta | None = None
    """Someone goes on writing."""
    answered: Turn | None = None
    """Someone has answered, or could not."""
    turn_ended: int | None = None
    """A turn is over, by number."""
    consensus: Consensus | None = None
    """The consensus so far."""
    left: ParticipantLeft | None = None
    """Someone is left out."""
    ended: Conversation | None = None
    """It ended; nothing follows."""

    @classmethod
    def from_message(cls, message: pb.ConversationEvent) -> ConversationEvent:
        """Returns the event that the message describes."""
        kind = message.WhichOneof("event")
        return cls(
            message.conversation_id,
            message.revision,
            from_timestamp(message.event_time),
            cast(EventKind, kind),
            **({kind: _content(getattr(message, kind))} if kind else {}),
        )


def _content(message: Any) -> Any:
    match message:
        case pb.Conversation():
            return Conversation.from_message(message)
        case pb.TextDelta():
            return TextDelta(message.turn, message.participant_id, message.text)
        case pb.Turn():
            return Turn.from_message(message)
        case pb.Consensus():
            return Consensus.from_message(message)
        case pb.ParticipantLeft():
            return ParticipantLeft(message.participant_id, from_status(message.reason))
    return message
