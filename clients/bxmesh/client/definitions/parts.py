"""What definitions are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bxmesh.client.agents.times import to_duration
from bxmesh.client.functions.json_values import from_struct, to_struct
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["DefinitionLimits", "ModelSettings", "Rule", "Tool"]


@dataclass(frozen=True)
class ModelSettings:
    """Which language model answers, and how. Keys come from the environment of the host."""

    model: str
    """Provider and model, for example "openai:gpt-5"."""
    base_url: str = ""
    """An OpenAI-compatible server; empty means the provider's own."""
    temperature: float | None = None
    """Randomness, 0 to 2; None for the model's default."""
    max_tokens: int = 0
    """At most so many tokens per answer; 0 for the model's default."""
    top_p: float | None = None
    """Nucleus sampling, 0 to 1; None for the model's default."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Settings that only this provider knows."""

    @classmethod
    def from_message(cls, message: pb.ModelSettings) -> ModelSettings:
        """Returns the settings that the message holds."""
        return cls(
            model=message.model,
            base_url=message.base_url,
            temperature=message.temperature if message.HasField("temperature") else None,
            max_tokens=message.max_tokens,
            top_p=message.top_p if message.HasField("top_p") else None,
            extra=from_struct(message.extra),
        )

    def to_message(self) -> pb.ModelSettings:
        """Returns the settings as a message."""
        return pb.ModelSettings(
            model=self.model,
            base_url=self.base_url,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            top_p=self.top_p,
            extra=to_struct(self.extra, "model.extra") if self.extra else None,
        )


@dataclass(frozen=True)
class Tool:
    """What a definition may call: a stored function or a capability of the mesh, one of the two."""

    function: str = ""
    """A stored function: its name, or "name@version" or "name@alias"."""
    capability: str = ""
    """A capability, done by whichever agent offers it."""

    def __post_init__(self) -> None:
        if bool(self.function) == bool(self.capability):
            raise invalid("tool", "a tool is a function or a capability, one of the two")

    @classmethod
    def from_message(cls, message: pb.ToolReference) -> Tool:
        """Returns the tool that the message names."""
        return cls(function=message.function, capability=message.capability)

    def to_message(self) -> pb.ToolReference:
        """Returns the tool as a message."""
        if self.function:
            return pb.ToolReference(function=self.function)
        return pb.ToolReference(capability=self.capability)


@dataclass(frozen=True)
class Rule:
    """Behaviour without a model: a type of message or task leads to a call."""

    message_type: str
    """The type, or a prefix that ends in an asterisk."""
    call: Tool
    """What is called with the payload."""
    reply_type: str = ""
    """The type of the reply to a message; empty for no reply."""
    result_mapping: Mapping[str, str] = field(default_factory=dict)
    """Paths in the result (with dots) and the fields of the reply that they become; empty for the
    result as it is."""

    @classmethod
    def from_message(cls, message: pb.MessageRule) -> Rule:
        """Returns the rule that the message holds."""
        return cls(
            message.message_type,
            Tool.from_message(message.call),
            message.reply_type,
            dict(message.result_mapping),
        )

    def to_message(self) -> pb.MessageRule:
        """Returns the rule as a message."""
        return pb.MessageRule(
            message_type=self.message_type,
            call=self.call.to_message(),
            reply_type=self.reply_type,
            result_mapping=self.result_mapping,
        )


@dataclass(frozen=True)
class DefinitionLimits:
    """What an agent of a definition may use."""

    timeout: float | None = None
    """Seconds for one message; None for the host's default."""
    max_concurrent_tasks: int = 1
    """Messages and tasks at a time."""
    max_tool_calls: int = 50
    """Calls of tools per message."""
    max_tokens: int | None = None
    """Tokens per message, both ways together; None for no limit."""

    @classmethod
    def from_message(cls, message: pb.DefinitionLimits) -> DefinitionLimits:
        """Returns the limits that the message holds, with what is not set as it counts."""
        return cls(
            timeout=message.timeout.ToNanoseconds() / 1e9 or None,
            max_concurrent_tasks=message.max_concurrent_tasks or cls.max_concurrent_tasks,
            max_tool_calls=message.max_tool_calls or cls.max_tool_calls,
            max_tokens=message.max_tokens or None,
        )

    def to_message(self) -> pb.DefinitionLimits:
        """Returns the limits as a message."""
        return pb.DefinitionLimits(
            timeout=to_duration(self.timeout),
            max_concurrent_tasks=self.max_concurrent_tasks,
            max_tool_calls=self.max_tool_calls,
            max_tokens=self.max_tokens or 0,
        )
