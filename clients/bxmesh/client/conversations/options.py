"""What callers say about a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypedDict

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.agents.times import to_duration, to_timestamp
from bxmesh.client.bundles import VISIBILITIES, Visibility
from bxmesh.client.conversations.conversation import (
    METHODS,
    STATES,
    ConsensusMethod,
    ConversationState,
)
from bxmesh.client.conversations.participants import Participant, ParticipantSource
from bxmesh.client.functions.stored import SchemaSource, schema_message

__all__ = ["ConversationFilter", "ConversationOptions", "to_filter", "to_spec"]


class ConversationOptions(TypedDict, total=False):
    """What can be said about a conversation besides its question."""

    participants: Iterable[ParticipantSource]
    """Who answers, at most 64: participants, or texts like agent:NAME, definition:NAME,
    capability:NAME and model:NAME. Without any, `agents` language models of different characters."""
    agents: int
    """How many answer when no participants are given, 1 to 64; 3."""
    turns: int
    """How many turns, 1 to 100; 1. From the second on all see what was said."""
    method: ConsensusMethod
    """How one answer is reached; majority."""
    judge: ParticipantSource | None
    """Who decides for the method judge, and breaks ties for others."""
    quorum: int
    """How many must have answered for a consensus; 0 means more than half."""
    stop_confidence: float
    """The confidence at which it ends before its last turn, 0 to 1; 0 means never."""
    answer_schema: SchemaSource | None
    """What answers look like: a JSON Schema or a model; needed for the method structured."""
    max_duration: float | None
    """Seconds that all of it may take, up to a day; an hour."""
    max_answer_duration: float | None
    """Seconds that an answer may take, up to an hour; ten minutes."""
    max_tokens: int
    """Tokens of all participants, both ways together, after which no further turn begins; 0 means
    no limit."""
    title: str
    """A title for lists; the beginning of the question."""
    labels: Mapping[str, str]
    """For the caller's own use."""
    visibility: Visibility | None
    """Who sees it; its owner."""
    bundle_ids: Iterable[str]
    """The bundles that it is about, at most 64."""


class ConversationFilter(TypedDict, total=False):
    """Which conversations; all that is said must hold."""

    states: Iterable[ConversationState]
    """In one of these states."""
    labels: Mapping[str, str]
    """With all of these labels."""
    since: datetime | None
    """Not begun before."""
    before: datetime | None
    """Begun before."""
    owner: str
    """Begun by this identity."""


def to_spec(message: str, options: ConversationOptions) -> pb.ConversationSpec:
    """Returns a conversation as a message. Raises InvalidInput, which names the field."""
    judge = options.get("judge")
    described = schema_message(options.get("answer_schema"), "answer_schema")
    participants = options.get("participants", ())
    if isinstance(participants, str | Participant):
        participants = (participants,)
    return pb.ConversationSpec(
        message=message,
        participants=[_participant(one) for one in participants],
        number_of_agents=options.get("agents", 0),
        turns=options.get("turns", 0),
        consensus=pb.ConsensusSettings(
            method=METHODS.number(options.get("method")),
            judge=None if judge is None else _participant(judge),
            answer_schema=None if described is None else described.json_schema,
            stop_confidence=options.get("stop_confidence", 0.0),
            quorum=options.get("quorum", 0),
        ),
        budget=pb.ConversationBudget(
            max_duration=to_duration(options.get("max_duration")),
            max_answer_duration=to_duration(options.get("max_answer_duration")),
            max_tokens=options.get("max_tokens", 0),
        ),
        title=options.get("title", ""),
        labels=options.get("labels"),
        visibility=VISIBILITIES.number(options.get("visibility")),
        bundle_ids=options.get("bundle_ids"),
    )


def to_filter(options: ConversationFilter) -> archive_pb.ConversationFilter:
    """Returns a filter as a message. Raises InvalidInput for a state that there is not."""
    return archive_pb.ConversationFilter(
        states=[STATES.number(state) for state in options.get("states", ())],
        labels=options.get("labels"),
        start_time=to_timestamp(options.get("since")),
        end_time=to_timestamp(options.get("before")),
        owner=options.get("owner", ""),
    )


def _participant(source: ParticipantSource) -> pb.Participant:
    found = Participant.parse(source) if isinstance(source, str) else source
    return found.to_message()
