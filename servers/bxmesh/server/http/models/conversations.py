"""Conversations: what is asked for, what was said, and what came out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pydantic import ConfigDict, Field, model_validator

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.bundles import VISIBILITIES, Visibility
from bxmesh.client.errors import from_status
from bxmesh.client.names import EnumNames
from bxmesh.registry.v1.agent_definition_pb2 import ModelSettings
from bxmesh.server.http.models.base import Asked, Integer, Name, Told, duration, moment
from bxmesh.server.http.problems import Problem, invalid_value, problem_of

__all__ = [
    "STATES",
    "AnswerGroup",
    "Budget",
    "ChatRequest",
    "Consensus",
    "ConsensusSettings",
    "Conversation",
    "ConversationState",
    "LanguageModel",
    "Participant",
    "Turn",
]

Personality = Literal["analytical", "creative", "critical", "factual", "mediating"]
Method = Literal["majority", "weighted", "ranked", "judge", "numeric", "structured"]
ConversationState = Literal["pending", "running", "completed", "failed", "cancelled"]

PERSONALITIES = EnumNames(pb.Personality, "PERSONALITY_")
METHODS = EnumNames(pb.ConsensusMethod, "CONSENSUS_METHOD_")
STATES = EnumNames(pb.ConversationState, "CONVERSATION_STATE_")

_SOURCES = ("agent_id", "definition_id", "capability", "model")
_Share = Annotated[float, Field(ge=0, le=1)]
Labels = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=63)], Annotated[str, Field(max_length=1024)]
    ],
    Field(max_length=64),
]


class LanguageModel(Asked):
    """A language model, and how it is asked."""

    model: str = Field(default="", max_length=256)
    """Provider and model, for example "openai:gpt"; empty means the first that a host lends."""
    base_url: str = Field(default="", max_length=2048)
    """The base URL of an OpenAI-compatible server; empty means the provider's own."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Randomness; left out means the model's default."""
    max_tokens: Integer = Field(default=0, ge=0, le=1_000_000)
    """At most so many tokens per answer; 0 means the model's default."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Nucleus sampling; left out means the model's default."""

    def to_message(self) -> ModelSettings:
        """Returns it as the mesh takes it."""
        return ModelSettings(**self.model_dump(exclude_none=True))

    @classmethod
    def from_message(cls, message: ModelSettings) -> LanguageModel:
        """Returns what a message holds."""
        return cls.model_construct(
            model=message.model,
            base_url=message.base_url,
            temperature=_optional(message, "temperature"),
            max_tokens=message.max_tokens,
            top_p=_optional(message, "top_p"),
        )


class Participant(Asked):
    """One voice of a conversation: an agent, a definition, a capability or a language model."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [source], "properties": {source: {"not": {"type": "null"}}}}
                for source in _SOURCES
            ]
        }
    )

    participant_id: Name | None = None
    """The name, unique within the conversation; left out, the mesh chooses."""
    agent_id: Name | None = None
    """A live agent."""
    definition_id: Name | None = None
    """An active definition."""
    capability: (
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=128)]
        | None
    ) = None
    """Any agent that offers this capability."""
    model: LanguageModel | None = None
    """A language model."""
    personality: Personality | None = None
    """The character, for a language model."""
    instructions: str = Field(default="", max_length=16384)
    """What it is told beyond that."""
    weight: float | None = Field(default=None, ge=0, le=1000)
    """Its weight in a weighted vote; left out means 1."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(getattr(self, source) is not None for source in _SOURCES) != 1:
            raise ValueError(f"exactly one of {', '.join(_SOURCES)} is needed")
        return self

    def to_message(self) -> pb.Participant:
        """Returns it as the mesh takes it."""
        message = pb.Participant(
            participant_id=self.participant_id or "",
            personality=PERSONALITIES.number(self.personality),
            instructions=self.instructions,
        )
        for source in ("agent_id", "definition_id", "capability"):
            if (value := getattr(self, source)) is not None:
                setattr(message, source, value)
        if self.model is not None:
            message.model.CopyFrom(self.model.to_message())
        if self.weight is not None:
            message.weight = self.weight
        return message

    @classmethod
    def from_message(cls, message: pb.Participant) -> Participant:
        """Returns what a message holds."""
        source = message.WhichOneof("source")
        return cls.model_construct(
            participant_id=message.participant_id,
            agent_id=message.agent_id if source == "agent_id" else None,
            definition_id=message.definition_id if source == "definition_id" else None,
            capability=message.capability if source == "capability" else None,
            model=LanguageModel.from_message(message.model) if source == "model" else None,
            personality=_named(PERSONALITIES, message.personality),
            instructions=message.instructions,
            weight=_optional(message, "weight"),
        )


class ConsensusSettings(Asked):
    """How one answer is reached."""

    method: Method | None = None
    """The method; left out means the majority."""
    judge: Participant | None = None
    """The judge; needed for the judge's method."""
    answer_schema: dict[str, Any] | None = None
    """The JSON Schema of the answer; needed for the structured method."""
    stop_confidence: _Share = 0
    """Confidence at which the conversation ends before its last turn; 0 means never."""
    quorum: Integer = Field(default=0, ge=0, le=64)
    """How many must have answered; 0 means more than half."""

    def to_message(self) -> pb.ConsensusSettings:
        """Returns it as the mesh takes it."""
        message = pb.ConsensusSettings(
            method=METHODS.number(self.method),
            stop_confidence=self.stop_confidence,
            quorum=self.quorum,
        )
        if self.judge is not None:
            message.judge.CopyFrom(self.judge.to_message())
        if self.answer_schema is not None:
            message.answer_schema.CopyFrom(_struct(self.answer_schema, "answer_schema"))
        return message


class Budget(Asked):
    """What a conversation may use. 0 means the mesh's own maximum."""

    seconds: float = Field(default=0, ge=0, le=86400)
    """Time, in seconds."""
    seconds_per_answer: float = Field(default=0, ge=0, le=3600)
    """Time per answer, in seconds."""
    tokens: Integer = Field(default=0, ge=0, le=2**63 - 1)
    """Tokens of all participants, both ways together."""

    def to_message(self) -> pb.ConversationBudget:
        """Returns it as the mesh takes it."""
        message = pb.ConversationBudget(max_tokens=self.tokens)
        if self.seconds:
            message.max_duration.CopyFrom(duration(self.seconds))
        if self.seconds_per_answer:
            message.max_answer_duration.CopyFrom(duration(self.seconds_per_answer))
        return message


class ChatRequest(Asked):
    """A question, and who answers it."""

    message: str = Field(min_length=1, max_length=262_144)
    """The question."""
    participants: tuple[Participant, ...] = Field(default=(), max_length=64)
    """Who answers; left out, so many of the mesh's default participants."""
    number_of_agents: Integer = Field(default=0, ge=0, le=64)
    """How many answer when no participants are given; 0 means 3."""
    turns: Integer = Field(default=0, ge=0, le=100)
    """How many turns; 0 means 1. From the second on all see what was said."""
    consensus: ConsensusSettings | None = None
    """How one answer is reached."""
    budget: Budget | None = None
    """What it may use."""
    title: str = Field(default="", max_length=255)
    """A title for lists; empty means the beginning of the message."""
    labels: Labels = Field(default_factory=dict)
    """Labels for the caller's own use."""
    visibility: Visibility | None = None
    """Who sees it; left out means its owner."""
    bundle_ids: tuple[Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")], ...] = Field(
        default=(), max_length=64, json_schema_extra={"uniqueItems": True}
    )
    """The bundles that it is about."""

    def to_message(self) -> pb.ConversationSpec:
        """Returns it as the mesh takes it."""
        message = pb.ConversationSpec(
            message=self.message,
            participants=[one.to_message() for one in self.participants],
            number_of_agents=self.number_of_agents,
            turns=self.turns,
            title=self.title,
            labels=self.labels,
            visibility=VISIBILITIES.number(self.visibility),
            bundle_ids=self.bundle_ids,
        )
        if self.consensus is not None:
            message.consensus.CopyFrom(self.consensus.to_message())
        if self.budget is not None:
            message.budget.CopyFrom(self.budget.to_message())
        return message


class Turn(Told):
    """One answer of one participant."""

    turn: int
    """The turn, from 1."""
    participant_id: str
    """Who answers."""
    text: str
    """What was said."""
    answer: Any = None
    """The answer as data, when the participant gave one."""
    confidence: float | None = None
    """How sure the participant is, 0 to 1."""
    error: Problem | None = None
    """Why there is no answer."""
    start_time: datetime | None = None
    """When it began."""
    end_time: datetime | None = None
    """When it ended."""
    model: str = ""
    """The language model that answered; empty for none."""
    input_tokens: int = 0
    """Tokens read."""
    output_tokens: int = 0
    """Tokens written."""
    evidence: list[str] = Field(default_factory=list)
    """What the answer rests on."""

    @classmethod
    def from_message(cls, message: pb.Turn) -> Turn:
        """Returns what a message holds."""
        return cls(
            turn=message.turn,
            participant_id=message.participant_id,
            text=message.text,
            answer=_value(message, "answer"),
            confidence=_optional(message, "confidence"),
            error=_problem(message, "error"),
            start_time=moment(message, "start_time"),
            end_time=moment(message, "end_time"),
            model=message.model,
            input_tokens=message.input_tokens,
            output_tokens=message.output_tokens,
            evidence=list(message.evidence),
        )


class AnswerGroup(Told):
    """Answers that mean the same."""

    answer: Any
    """The answer that stands for them."""
    participant_ids: list[str]
    """Who gave it."""
    share: float
    """The part of the votes it has, 0 to 1."""


class Consensus(Told):
    """The one answer."""

    answer: Any = None
    """The answer."""
    text: str
    """The answer in words."""
    confidence: float
    """How sure it is, 0 to 1."""
    method: Method | None
    """The method by which it was reached."""
    groups: list[AnswerGroup]
    """All answers, the one with most votes first."""
    tie_break: str
    """How a tie was broken; empty without one."""
    spread: float | None = None
    """Half the distance between the quartiles of numeric answers."""
    evidence: list[str]
    """What it rests on."""
    turn: int
    """The turn after which it was reached."""

    @classmethod
    def from_message(cls, message: pb.Consensus) -> Consensus:
        """Returns what a message holds."""
        return cls(
            answer=_value(message, "answer"),
            text=message.text,
            confidence=message.confidence,
            method=_named(METHODS, message.method),
            groups=[
                AnswerGroup(
                    answer=_value(group, "answer"),
                    participant_ids=list(group.participant_ids),
                    share=group.share,
                )
                for group in message.groups
            ],
            tie_break=message.tie_break,
            spread=_optional(message, "spread"),
            evidence=list(message.evidence),
            turn=message.turn,
        )


class Conversation(Told):
    """A question, what was said, and what came out."""

    conversation_id: str
    """The name, chosen by the mesh."""
    state: ConversationState | None
    """Where it stands."""
    message: str
    """The question."""
    title: str
    """The title; empty means the beginning of the message."""
    labels: dict[str, str]
    """Labels for the caller's own use."""
    participants: list[Participant]
    """Who takes part."""
    turns: list[Turn]
    """What was said, in order. Left out of lists."""
    consensus: Consensus | None = None
    """What came out, or is on the way to."""
    error: Problem | None = None
    """Why there is none."""
    owner: str
    """The identity that began it."""
    create_time: datetime | None = None
    """When it was begun."""
    update_time: datetime | None = None
    """When it changed last."""
    end_time: datetime | None = None
    """When it ended."""
    expire_time: datetime | None = None
    """When it is forgotten; left out means when an operator cleans up."""
    revision: int
    """The number of its last event; streams resume from it."""
    trace_id: str
    """The trace it belongs to."""

    @classmethod
    def from_message(cls, message: pb.Conversation) -> Conversation:
        """Returns what a message holds."""
        return cls.model_construct(
            conversation_id=message.conversation_id,
            state=_named(STATES, message.state),
            message=message.spec.message,
            title=message.spec.title,
            labels=dict(message.spec.labels),
            participants=[Participant.from_message(one) for one in message.participants],
            turns=[Turn.from_message(turn) for turn in message.turns],
            consensus=Consensus.from_message(message.consensus)
            if message.HasField("consensus")
            else None,
            error=_problem(message, "error"),
            owner=message.owner,
            create_time=moment(message, "create_time"),
            update_time=moment(message, "update_time"),
            end_time=moment(message, "end_time"),
            expire_time=moment(message, "expire_time"),
            revision=message.revision,
            trace_id=message.trace_id,
        )


def _optional(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _value(message: Message, name: str) -> Any:
    return MessageToDict(getattr(message, name)) if message.HasField(name) else None


def _named(names: EnumNames[Any], number: int) -> Any:
    name = names.name(number)
    return None if name == "unspecified" else name


def _problem(message: Any, name: str) -> Problem | None:
    return problem_of(from_status(getattr(message, name))) if message.HasField(name) else None


def _struct(value: dict[str, Any], field: str) -> Struct:
    try:
        return ParseDict(value, Struct())
    except (ParseError, ValueError, RecursionError) as error:
        raise invalid_value(field, "is nested too deeply or holds what JSON has not") from error
