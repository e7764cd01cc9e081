"""What an agent can do for others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from pydantic import TypeAdapter

from bxmesh.client.agents.handlers import Handlers
from bxmesh.client.agents.states import to_struct
from bxmesh.client.agents.times import to_duration
from bxmesh.registry.v1 import agent_pb2, schema_pb2

__all__ = ["Capability", "offered"]

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


@dataclass(frozen=True)
class Capability:
    """Something an agent can do for others."""

    name: str
    """Lower-case words separated by dots, for example geometry.gradients."""
    description: str = ""
    """One sentence for people."""
    input: Any = None
    """What it takes: a pydantic model or protobuf message; None for anything."""
    output: Any = None
    """What it answers, likewise."""
    timeout: float | None = None
    """How long one piece of work may take, in seconds; None for the server's default."""

    def to_message(self) -> agent_pb2.Capability:
        """Returns the capability as a message."""
        return agent_pb2.Capability(
            name=self.name,
            description=self.description,
            input_schema=_schema(self.input),
            output_schema=_schema(self.output),
            timeout=to_duration(self.timeout),
        )


def offered(named: Iterable[str | Capability], handlers: Handlers) -> list[Capability]:
    """Returns what an agent offers: what it names, and the types of tasks that it handles."""
    found = {
        handler.pattern: Capability(handler.pattern, input=handler.model, timeout=handler.timeout)
        for handler in handlers
        if handler.kind == "task" and _NAME.fullmatch(handler.pattern)
    }
    for one in named:
        if isinstance(one, Capability):
            found[one.name] = one
        else:
            found.setdefault(one, Capability(one))
    return list(found.values())


def _schema(model: Any) -> schema_pb2.Schema | None:
    if model is None:
        return None
    if isinstance(model, type) and issubclass(model, Message):
        return schema_pb2.Schema(protobuf_type=model.DESCRIPTOR.full_name)
    return schema_pb2.Schema(json_schema=to_struct(TypeAdapter(model).json_schema()))
