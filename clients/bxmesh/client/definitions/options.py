"""What callers say of a definition, as a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from bxmesh.client.agents.capabilities import Capability
from bxmesh.client.chains import Chain
from bxmesh.client.definitions.files import OUTPUT_ONLY, from_plain, snake
from bxmesh.client.definitions.parts import DefinitionLimits, ModelSettings, Rule, Tool
from bxmesh.client.functions.stored import SchemaSource, schema_message
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["Content", "DefinitionOptions", "to_message"]

Content = str | Mapping[str, Any] | pb.AgentDefinition
"""A definition's name, or a definition as files hold it: the JSON form of its message, or the same in
shorter words."""

_FIELDS = pb.AgentDefinition.DESCRIPTOR.fields_by_name


class DefinitionOptions(TypedDict, total=False):
    """What can be said about a definition besides its name."""

    display_name: str
    """A name for people."""
    description: str
    """What it is for."""
    model: ModelSettings | None
    """The model that answers; None for rules or a chain."""
    system_prompt: str
    """What the model is told first."""
    rules: Iterable[Rule]
    """Behaviour without a model, first match wins."""
    chain: Chain | None
    """The chain it runs."""
    input_schema: SchemaSource | None
    """What it takes."""
    output_schema: SchemaSource | None
    """What it answers."""
    tools: Iterable[Tool]
    """What it may call."""
    capabilities: Iterable[str | Capability]
    """What it offers."""
    limits: DefinitionLimits | None
    """What it may use."""
    max_chain_depth: int
    """How deep it may delegate, 0 (not at all) to 32."""
    replicas: int
    """How many agents run it over all hosts."""
    labels: Mapping[str, str]
    """For the owner's own use."""


def to_message(
    content: Content, options: DefinitionOptions
) -> tuple[pb.AgentDefinition, list[str]]:
    """Returns a definition, and the fields that were said.

    Raises InvalidInput, which names the field, for what the contract does not have.
    """
    message = pb.AgentDefinition()
    match content:
        case str():
            message.definition_id = content
        case pb.AgentDefinition():
            message.CopyFrom(content)
        case _:
            message.CopyFrom(from_plain(content))
    for name, value in options.items():
        _set(message, name, value)
    given = {snake(name) for name in content} if isinstance(content, Mapping) else set()
    if isinstance(content, pb.AgentDefinition):
        given = {field.name for field, _ in content.ListFields()}
    return message, sorted((given | options.keys()) - OUTPUT_ONLY - {"definition_id"})


def _set(message: pb.AgentDefinition, name: str, value: Any) -> None:
    if name not in _FIELDS:
        raise invalid(name, f"definitions have no {name}")
    message.ClearField(name)  # type: ignore[arg-type]  # It was just looked up.
    if value is None:
        return
    match name:
        case "rules" | "tools":
            getattr(message, name).extend(one.to_message() for one in value)
        case "capabilities":
            message.capabilities.extend(
                (Capability(one) if isinstance(one, str) else one).to_message() for one in value
            )
        case "model" | "limits":
            getattr(message, name).CopyFrom(value.to_message())
        case "input_schema" | "output_schema":
            getattr(message, name).CopyFrom(schema_message(value, name))
        case "chain":
            message.chain.CopyFrom(value.to_message())
        case "labels":
            message.labels.update(value)
        case _:
            setattr(message, name, value)
