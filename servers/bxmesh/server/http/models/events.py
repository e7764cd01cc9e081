"""What happens in a conversation, as streams and web sockets tell it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.errors import from_status
from bxmesh.server.http.models.base import Told, moment
from bxmesh.server.http.models.conversations import Consensus, Conversation, Turn
from bxmesh.server.http.problems import Problem, problem_of

__all__ = ["Event", "Failed", "event_of"]


class _Event(Told):
    conversation_id: str
    """The conversation."""
    revision: int
    """Counts up from 1 within the conversation: resume after it."""
    time: datetime | None = None
    """When."""


class Started(_Event):
    """It began."""

    type: Literal["conversation_started"] = "conversation_started"
    conversation: Conversation
    """As it stands."""


class TextDelta(_Event):
    """Someone goes on writing."""

    type: Literal["text_delta"] = "text_delta"
    turn: int
    """The turn."""
    participant_id: str
    """Who writes."""
    text: str
    """What comes next."""


class AgentResponse(_Event):
    """Someone has answered, or could not."""

    type: Literal["agent_response"] = "agent_response"
    response: Turn
    """The answer."""


class TurnEnded(_Event):
    """A turn is over."""

    type: Literal["turn_ended"] = "turn_ended"
    turn: int
    """The turn."""


class ConsensusUpdate(_Event):
    """The consensus so far."""

    type: Literal["consensus_update"] = "consensus_update"
    consensus: Consensus
    """What it is."""


class ParticipantLeft(_Event):
    """Someone is left out from now on."""

    type: Literal["participant_left"] = "participant_left"
    participant_id: str
    """Who."""
    reason: Problem
    """Why."""


class Ended(_Event):
    """It ended."""

    type: Literal["conversation_ended"] = "conversation_ended"
    conversation: Conversation
    """With all that was said."""


class Failed(Told):
    """The stream ends here; the conversation may go on."""

    type: Literal["error"] = "error"
    problem: Problem
    """Why."""


Event = Annotated[
    Started
    | TextDelta
    | AgentResponse
    | TurnEnded
    | ConsensusUpdate
    | ParticipantLeft
    | Ended
    | Failed,
    Field(discriminator="type"),
]


def event_of(message: pb.ConversationEvent) -> _Event | None:
    """Returns the event that a message holds; None for one that this version does not know."""
    common: dict[str, Any] = {
        "conversation_id": message.conversation_id,
        "revision": message.revision,
        "time": moment(message, "event_time"),
    }
    match message.WhichOneof("event"):
        case "started":
            return Started(**common, conversation=Conversation.from_message(message.started))
        case "delta":
            return TextDelta(
                **common,
                turn=message.delta.turn,
                participant_id=message.delta.participant_id,
                text=message.delta.text,
            )
        case "answered":
            return AgentResponse(**common, response=Turn.from_message(message.answered))
        case "turn_ended":
            return TurnEnded(**common, turn=message.turn_ended)
        case "consensus":
            return ConsensusUpdate(**common, consensus=Consensus.from_message(message.consensus))
        case "left":
            return ParticipantLeft(
                **common,
                participant_id=message.left.participant_id,
                reason=problem_of(from_status(message.left.reason)),
            )
        case "ended":
            return Ended(**common, conversation=Conversation.from_message(message.ended))
        case _:
            return None
