"""Chains as they are written in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from bxmesh.client.agents.retry import RetryPolicy
from bxmesh.client.agents.times import to_duration
from bxmesh.client.chains.files import from_text, read, to_text
from bxmesh.client.functions.stored import SchemaSource, from_schema, schema_message
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import chain_pb2 as pb
from bxmesh.registry.v1.retry_policy_pb2 import RetryPolicy as RetryMessage
from bxmesh.registry.v1.schema_pb2 import Schema

__all__ = ["Chain", "ChainStep"]


@dataclass(frozen=True)
class ChainStep:
    """One node of a chain: exactly one of a function, a capability and an agent.

    Expressions are CEL over `input` and `steps.<step_id>.output`.
    """

    step_id: str
    """The name, unique in its chain."""
    _: KW_ONLY
    function: str = ""
    """A stored function: its name, or name@version or name@alias."""
    capability: str = ""
    """What whichever agent the mesh selects must offer."""
    agent: str = ""
    """An agent or a definition by name; it gets a task of the type chain.step."""
    after: Sequence[str] = ()
    """Steps, or one, that must have ended before."""
    condition: str = ""
    """An expression; the step is left out when it is false."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Its input by field, names with dots for inner ones: text is an expression, anything else itself.
    Without any it gets the output of the only step before it, or the chain's input."""
    timeout: float | None = None
    """Seconds that one attempt may take; an hour."""
    retry: RetryPolicy | None = None
    """How it is tried again; not at all."""
    allow_failure: bool = False
    """Whether the chain goes on when it has failed for good."""

    def __post_init__(self) -> None:
        after = (self.after,) if isinstance(self.after, str) else tuple(self.after)
        object.__setattr__(self, "after", after)
        object.__setattr__(self, "inputs", _expressions(self.inputs))

    def to_message(self) -> pb.ChainStep:
        """Returns the step as a message. Raises InvalidInput unless it has one thing to do."""
        calls = {"function": self.function, "capability": self.capability, "agent": self.agent}
        given = {name: value for name, value in calls.items() if value}
        if len(given) != 1:
            what = " and ".join(given) or "nothing to do"
            raise invalid(
                "chain.steps",
                f"{self.step_id} has {what}: give it a function, a capability or an agent",
            )
        return pb.ChainStep(
            step_id=self.step_id,
            after=self.after,
            condition=self.condition,
            input_mapping=self.inputs,
            timeout=to_duration(self.timeout),
            retry_policy=None if self.retry is None else self.retry.to_message(),
            allow_failure=self.allow_failure,
            **given,
        )

    @classmethod
    def from_message(cls, message: pb.ChainStep) -> ChainStep:
        """Returns the step that the message describes."""
        return cls(
            message.step_id,
            function=message.function,
            capability=message.capability,
            agent=message.agent,
            after=tuple(message.after),
            condition=message.condition,
            inputs=dict(sorted(message.input_mapping.items())),
            timeout=message.timeout.ToNanoseconds() / 1e9 or None,
            retry=_retry(message.retry_policy) if message.HasField("retry_policy") else None,
            allow_failure=message.allow_failure,
        )


@dataclass(frozen=True)
class Chain:
    """A graph of steps without cycles; steps that do not wait for each other run at the same time."""

    steps: Sequence[ChainStep]
    """The steps, at most 128."""
    _: KW_ONLY
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """What it answers by field, as the inputs of steps; the output of its last step."""
    input_schema: SchemaSource | str | None = None
    """What it takes: a JSON Schema, a model, or the full name of a protobuf message."""
    output_schema: SchemaSource | str | None = None
    """What it answers, likewise."""
    timeout: float | None = None
    """Seconds that all of it may take; no limit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "outputs", _expressions(self.outputs))

    @classmethod
    def read(cls, path: str | Path) -> Chain:
        """Returns the chain in a file of YAML or JSON. Raises InvalidInput for one that has none."""
        return cls.from_message(read(Path(path)))

    @classmethod
    def parse(cls, text: str) -> Chain:
        """Returns the chain that YAML or JSON says. Raises InvalidInput for what says none."""
        return cls.from_message(from_text(text))

    def to_yaml(self) -> str:
        """Returns the chain as YAML that `parse` takes."""
        return to_text(self.to_message())

    def to_message(self) -> pb.Chain:
        """Returns the chain as a message."""
        return pb.Chain(
            steps=[step.to_message() for step in self.steps],
            input_schema=_schema(self.input_schema, "input_schema"),
            output_schema=_schema(self.output_schema, "output_schema"),
            output_mapping=self.outputs,
            timeout=to_duration(self.timeout),
        )

    @classmethod
    def from_message(cls, message: pb.Chain) -> Chain:
        """Returns the chain that the message describes."""
        return cls(
            [ChainStep.from_message(step) for step in message.steps],
            outputs=dict(sorted(message.output_mapping.items())),
            input_schema=from_schema(message.input_schema)
            or message.input_schema.protobuf_type
            or None,
            output_schema=from_schema(message.output_schema)
            or message.output_schema.protobuf_type
            or None,
            timeout=message.timeout.ToNanoseconds() / 1e9 or None,
        )


def _expressions(fields: Mapping[str, Any]) -> dict[str, str]:
    """Returns expressions: CEL writes plain values as JSON does."""
    return {
        name: each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        for name, each in fields.items()
    }


def _schema(source: SchemaSource | str | None, field: str) -> Schema | None:
    if isinstance(source, str):
        return Schema(protobuf_type=source)
    return schema_message(source, field)


def _retry(message: RetryMessage) -> RetryPolicy:
    first, longest = message.initial_backoff, message.max_backoff
    default = RetryPolicy()
    return RetryPolicy(
        max_attempts=message.max_attempts,
        initial_backoff=first.ToNanoseconds() / 1e9
        if message.HasField("initial_backoff")
        else default.initial_backoff,
        max_backoff=longest.ToNanoseconds() / 1e9
        if message.HasField("max_backoff")
        else default.max_backoff,
        non_retryable=tuple(message.non_retryable_reasons),
    )
