"""Who takes part in a conversation."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, TypeAlias

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.definitions.parts import ModelSettings
from bxmesh.client.names import EnumNames, invalid

__all__ = ["PERSONALITIES", "Participant", "ParticipantSource", "Personality"]

Personality = Literal["analytical", "creative", "critical", "factual", "mediating"]
"""The character in which a language model answers."""

PERSONALITIES = EnumNames(pb.Personality, "PERSONALITY_")

_SOURCES = ("agent", "definition", "capability", "model")


@dataclass(frozen=True)
class Participant:
    """One voice: exactly one of an agent, a definition, a capability and a language model."""

    id: str = ""
    """The name within the conversation; empty lets the mesh choose."""
    _: KW_ONLY
    agent: str = ""
    """A live agent."""
    definition: str = ""
    """An active definition."""
    capability: str = ""
    """What whichever agent the mesh selects must offer."""
    model: ModelSettings | str | None = None
    """A language model that some host lends: its name or its settings; an empty name is the host's
    default."""
    personality: Personality | None = None
    """The character, for a language model."""
    instructions: str = field(default="", repr=False)
    """What it is told beyond that; at most 16384 characters."""
    weight: float | None = None
    """Its weight in a weighted vote, 0 to 1000; 1."""

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            object.__setattr__(self, "model", ModelSettings(self.model))

    @classmethod
    def parse(cls, text: str) -> Participant:
        """Returns what `agent:NAME`, `definition:NAME`, `capability:NAME` or `model:NAME` says.

        Raises InvalidInput for anything else.
        """
        kind, _, name = text.partition(":")
        if kind not in _SOURCES or not (name or kind == "model"):
            raise invalid(
                "participants",
                f"{text!r} is no participant: write agent:NAME, definition:NAME, capability:NAME or "
                "model:NAME",
            )
        return cls(**{kind: name})  # type: ignore[arg-type]  # It is one of the four.

    @property
    def source(self) -> str:
        """What answers, as `parse` takes it; empty for nothing."""
        for kind in _SOURCES:
            value = getattr(self, kind)
            if isinstance(value, ModelSettings):
                return f"model:{value.model}"
            if value:
                return f"{kind}:{value}"
        return ""

    def to_message(self) -> pb.Participant:
        """Returns the participant as a message. Raises InvalidInput unless one thing answers."""
        given = [kind for kind in _SOURCES if getattr(self, kind)]
        if len(given) != 1:
            raise invalid(
                "participants",
                f"{self.id or 'a participant'} is {' and '.join(given) or 'nobody'}: give it an "
                "agent, a definition, a capability or a model",
            )
        message = pb.Participant(
            participant_id=self.id,
            personality=PERSONALITIES.number(self.personality),
            instructions=self.instructions,
            weight=self.weight,
        )
        if isinstance(self.model, ModelSettings):
            message.model.CopyFrom(self.model.to_message())
        elif self.agent:
            message.agent_id = self.agent
        elif self.definition:
            message.definition_id = self.definition
        else:
            message.capability = self.capability
        return message

    @classmethod
    def from_message(cls, message: pb.Participant) -> Participant:
        """Returns the participant that the message describes."""
        name = PERSONALITIES.name(message.personality)
        return cls(
            message.participant_id,
            agent=message.agent_id,
            definition=message.definition_id,
            capability=message.capability,
            model=ModelSettings.from_message(message.model) if message.HasField("model") else None,
            personality=None if name == "unspecified" else name,  # type: ignore[arg-type]
            instructions=message.instructions,
            weight=message.weight if message.HasField("weight") else None,
        )


ParticipantSource: TypeAlias = Participant | str
"""A participant, or what `Participant.parse` takes."""
