"""Conversations before anything is said."""

from __future__ import annotations

from collections.abc import Sequence

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server import telemetry

__all__ = ["begun", "continued", "first_turn"]

_TITLE_CHARACTERS = 80


def begun(
    name: str, spec: pb.ConversationSpec, participants: Sequence[pb.Participant], owner: str
) -> pb.Conversation:
    """Returns a new conversation that waits to begin."""
    conversation = pb.Conversation(
        conversation_id=name,
        spec=spec,
        state=pb.CONVERSATION_STATE_PENDING,
        participants=participants,
        owner=owner,
        revision=1,
        trace_id=telemetry.current_trace_id(),
    )
    if not spec.title:
        conversation.spec.title = " ".join(spec.message.split())[:_TITLE_CHARACTERS]
    conversation.create_time.GetCurrentTime()
    conversation.update_time.CopyFrom(conversation.create_time)
    return conversation


def continued(conversation: pb.Conversation, request: pb.SendConversationMessageRequest) -> int:
    """Lets a conversation that has ended wait to go on with another question; returns the turn that
    comes first."""
    last = max((turn.turn for turn in conversation.turns), default=0)
    # The question is said in a turn of its own, so that all see it as said before theirs.
    asked = pb.Turn(turn=last + 1, text=request.message)
    asked.start_time.GetCurrentTime()
    asked.end_time.CopyFrom(asked.start_time)
    conversation.turns.append(asked)
    conversation.state = pb.CONVERSATION_STATE_PENDING
    conversation.revision += 1
    conversation.update_time.CopyFrom(asked.start_time)
    for name in ("consensus", "error", "end_time"):
        conversation.ClearField(name)
    return last + 2


def first_turn(conversation: pb.Conversation) -> int:
    """Returns the turn with which the latest round begins."""
    asked = [turn.turn for turn in conversation.turns if not turn.participant_id]
    return asked[-1] + 1 if asked else 1
