"""Definitions as they are written in files: the contract's JSON, or the same in shorter words, as YAML
too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from bxmesh.client.chains import Chain
from bxmesh.client.errors import InvalidInput
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import agent_definition_pb2 as pb

__all__ = ["OUTPUT_ONLY", "from_plain", "from_text", "read", "snake", "to_text"]

OUTPUT_ONLY = frozenset(
    {"state", "version", "owner", "create_time", "update_time", "revision", "active_version"}
)
"""Fields that the mesh sets."""

_CAPITAL = re.compile(r"(?<=[a-z])[A-Z]")
_KINDS = {"json_schema", "jsonSchema", "protobuf_type", "protobufType"}


def read(path: Path) -> dict[str, Any]:
    """Returns the definition in a file, with the contract's names. Raises InvalidInput."""
    try:
        return from_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("definition", f"{path} cannot be read: {error}") from error


def from_text(text: str, what: str = "the text") -> dict[str, Any]:
    """Returns the definition that YAML or JSON says, with the contract's names. Raises InvalidInput."""
    # JSON is YAML but for details, and nobody else needs the parser.
    import yaml

    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable("definition", f"{what} has no definition: {error}") from error
    if not isinstance(plain, dict):
        raise _unreadable("definition", f"{what} has no definition: names and values are missing")
    return {snake(str(name)): value for name, value in plain.items()}


def to_text(message: pb.AgentDefinition) -> str:
    """Returns a definition as YAML that `from_text` takes."""
    import yaml

    plain = json_format.MessageToDict(message, preserving_proto_field_name=True)
    found = {name: _short(value) for name, value in plain.items() if name not in OUTPUT_ONLY}
    if message.HasField("chain"):
        found["chain"] = yaml.safe_load(Chain.from_message(message.chain).to_yaml())
    text: str = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
    return text


def from_plain(content: Mapping[str, Any]) -> pb.AgentDefinition:
    """Returns what an object says of a definition. Raises InvalidInput, which names the field."""
    message = pb.AgentDefinition()
    for name, value in content.items():
        field = snake(name)
        try:
            if field == "chain" and isinstance(value, Mapping):
                message.chain.CopyFrom(Chain.parse(json.dumps(value)).to_message())
            else:
                json_format.ParseDict({field: _long(field, value)}, message)
        except (json_format.ParseError, TypeError, ValueError) as error:
            place = f"definition.{field}"
            raise _unreadable(place, f"{place} cannot be read: {error}") from error
    return message


def snake(name: str) -> str:
    """Returns a field's name as the contract has it: displayName is display_name."""
    return _CAPITAL.sub(lambda capital: f"_{capital[0].lower()}", name)


def _long(field: str, value: Any) -> Any:
    """What may be written shorter: schemas, seconds, capabilities by their names."""
    match field, value:
        case (("input_schema" | "output_schema"), dict()) if _KINDS.isdisjoint(value):
            return {"json_schema": value}
        case ("timeout", int() | float()) if not isinstance(value, bool):
            return f"{value:.9f}s"
        case "limits", dict():
            return {name: _long(snake(name), each) for name, each in value.items()}
        case "capabilities", list():
            return [
                {name: _long(snake(name), each) for name, each in one.items()}
                if isinstance(one, dict)
                else {"name": one}
                for one in value
            ]
    return value


def _short(value: Any) -> Any:
    match value:
        case {"json_schema": schema}:
            return _whole(schema)
        case dict():
            return {name: _short(each) for name, each in value.items()}
        case list():
            return [_short(each) for each in value]
    return value


def _whole(value: Any) -> Any:
    """Numbers as they were written: a Struct has doubles only."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _whole(each) for name, each in value.items()}
        case list():
            return [_whole(each) for each in value]
    return value


def _unreadable(field: str, message: str) -> InvalidInput:
    return invalid(field, message, "DEFINITION_UNREADABLE")
