"""Definitions as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.chains import Chain
from bxmesh.client.definitions.parts import DefinitionLimits, ModelSettings, Rule, Tool
from bxmesh.client.functions.stored import from_schema
from bxmesh.client.names import EnumNames
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["STATES", "Definition", "DefinitionEvent", "DefinitionState"]

DefinitionState = Literal["draft", "active", "draining", "inactive"]

STATES = EnumNames(pb.DefinitionState, "DEFINITION_STATE_")


@dataclass(frozen=True)
class Definition:
    """An agent as data, in one version."""

    definition_id: str
    """The name, which its first agent has too."""
    version: int
    """Counts up from 1 with every change of what it does."""
    state: DefinitionState
    """Whether hosts run it."""
    active_version: int
    """The version that hosts run; 0 when none."""
    display_name: str
    """A name for people."""
    description: str
    """What it is for."""
    model: ModelSettings | None
    """The model that answers; None for rules or a chain."""
    system_prompt: str
    """What the model is told first."""
    rules: tuple[Rule, ...]
    """Behaviour without a model, first match wins."""
    chain: Chain | None
    """The chain it runs."""
    input_schema: dict[str, Any] | None
    """A JSON Schema of what it takes; None where anything goes."""
    output_schema: dict[str, Any] | None
    """A JSON Schema of what it answers; None where anything goes."""
    tools: tuple[Tool, ...]
    """What it may call."""
    capabilities: tuple[str, ...]
    """What it offers."""
    limits: DefinitionLimits
    """What it may use."""
    max_chain_depth: int
    """How deep it may delegate; 0 for not at all."""
    replicas: int
    """How many agents run it over all hosts."""
    labels: dict[str, str]
    """For the owner's own use."""
    owner: str
    """The identity that created it."""
    create_time: datetime | None
    """When it was created."""
    update_time: datetime | None
    """When it was changed."""
    revision: int
    """Grows with every change, of the state too."""
    message: pb.AgentDefinition = field(repr=False, compare=False)
    """The message of the contract."""

    @classmethod
    def from_message(cls, message: pb.AgentDefinition) -> Definition:
        """Returns the definition that the message holds."""
        return cls(
            definition_id=message.definition_id,
            version=message.version,
            state=cast(DefinitionState, STATES.name(message.state)),
            active_version=message.active_version,
            display_name=message.display_name,
            description=message.description,
            model=ModelSettings.from_message(message.model) if message.model.model else None,
            system_prompt=message.system_prompt,
            rules=tuple(map(Rule.from_message, message.rules)),
            chain=Chain.from_message(message.chain) if message.HasField("chain") else None,
            input_schema=from_schema(message.input_schema),
            output_schema=from_schema(message.output_schema),
            tools=tuple(map(Tool.from_message, message.tools)),
            capabilities=tuple(one.name for one in message.capabilities),
            limits=DefinitionLimits.from_message(message.limits),
            max_chain_depth=message.max_chain_depth,
            replicas=message.replicas or 1,
            labels=dict(message.labels),
            owner=message.owner,
            create_time=from_timestamp(message.create_time),
            update_time=from_timestamp(message.update_time),
            revision=message.revision,
            message=message,
        )

    @property
    def behaviour(self) -> Literal["model", "rules", "chain", "none"]:
        """What decides what it does."""
        if self.model is not None:
            return "model"
        if self.chain is not None:
            return "chain"
        return "rules" if self.rules else "none"


@dataclass(frozen=True)
class DefinitionEvent:
    """One change of a definition."""

    definition_id: str
    """The definition; empty when there are none at first."""
    definition: Definition | None
    """In the version that runs while it is active or draining, else in its newest; None when it was
    deleted."""
    deleted: bool
    """Whether it was deleted."""
    complete: bool
    """Whether this is the last of the definitions that were there at first."""
    revision: int
    """The revision that the change made."""

    @classmethod
    def from_message(cls, message: pb.WatchAgentDefinitionsResponse) -> DefinitionEvent:
        """Returns the event that the message describes."""
        there = message.HasField("definition") and not message.deleted
        return cls(
            definition_id=message.definition.definition_id,
            definition=Definition.from_message(message.definition) if there else None,
            deleted=message.deleted,
            complete=message.complete,
            revision=message.revision,
        )
