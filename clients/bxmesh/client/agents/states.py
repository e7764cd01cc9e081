"""State: what agents keep across restarts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from bxmesh.agent.v1 import state_pb2 as pb
from bxmesh.client.agents.times import from_timestamp
from bxmesh.client.names import invalid

__all__ = ["AgentState", "from_struct", "to_struct"]

_LARGEST_EXACT = 2**53


@dataclass(frozen=True)
class AgentState:
    """An agent's state at one revision."""

    agent_id: str
    """The agent."""
    value: dict[str, Any]
    """The state, a JSON object. Numbers without a fraction are int."""
    revision: int
    """Grows with every change; 0 when nothing was ever stored."""
    update_time: datetime | None
    """When it was changed."""
    updated_by: str
    """The identity that changed it."""

    @classmethod
    def from_message(cls, message: pb.AgentState) -> AgentState:
        """Returns the state that the message describes."""
        return cls(
            agent_id=message.agent_id,
            value=from_struct(message.value),
            revision=message.revision,
            update_time=from_timestamp(message.update_time),
            updated_by=message.updated_by,
        )


def from_struct(struct: Struct) -> dict[str, Any]:
    """Returns a message as a JSON object; numbers without a fraction are int."""
    return {key: _plain(value) for key, value in json_format.MessageToDict(struct).items()}


def _plain(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) <= _LARGEST_EXACT:
            return int(value)
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list():
            return [_plain(each) for each in value]
    return value


def to_struct(value: Mapping[str, Any]) -> Struct:
    """Returns a JSON object as a message. InvalidInput for what JSON does not have."""
    try:
        return json_format.ParseDict(dict(value), Struct())
    except json_format.ParseError as error:
        raise invalid("state", f"the state has no JSON: {error}") from error
