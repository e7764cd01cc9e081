"""Chains as they are written in files: the contract's JSON, or the same in shorter words, as YAML too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from bxmesh.client.errors import InvalidInput
from bxmesh.client.functions.json_values import from_struct
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import chain_pb2 as pb

__all__ = ["from_text", "read", "to_text"]

_SHORT = {"input_mapping": "inputs", "output_mapping": "outputs", "retry_policy": "retry"}
_LONG = {short: long for long, short in _SHORT.items()}
_CAPITAL = re.compile(r"(?<=[a-z])[A-Z]")


def read(path: Path) -> pb.Chain:
    """Returns the chain in a file. Raises InvalidInput for one that has none, or is not there."""
    try:
        return from_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(f"{path} cannot be read: {error}") from error


def from_text(text: str, what: str = "the text") -> pb.Chain:
    """Returns the chain that YAML or JSON says. Raises InvalidInput for what says none."""
    # JSON is YAML but for details, and nobody else needs the parser.
    import yaml

    try:
        plain = yaml.safe_load(text)
        return json_format.ParseDict(_changed(plain, _CHAIN), pb.Chain())
    except (yaml.YAMLError, json_format.ParseError, ValueError, RecursionError) as error:
        raise _unreadable(f"{what} has no chain: {error}") from error


def to_text(chain: pb.Chain) -> str:
    """Returns a chain as YAML."""
    import yaml

    plain = json_format.MessageToDict(chain, preserving_proto_field_name=True)
    for name in ("input_schema", "output_schema"):
        schema = getattr(chain, name)
        if schema.HasField("json_schema"):
            plain[name] = from_struct(schema.json_schema)
    for step in plain.get("steps", ()):
        _shorten(step)
    _shorten(plain)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def _shorten(plain: dict[str, Any]) -> None:
    for long, short in _SHORT.items():
        if long in plain:
            plain[short] = plain.pop(long)


_Change = Callable[[Any], Any]


def _changed(plain: Any, changes: Mapping[str, _Change]) -> dict[str, Any]:
    """Returns an object with the contract's names, and each field as the contract has it."""
    if not isinstance(plain, dict):
        raise ValueError(f"there must be names and values in place of {str(plain)[:40]!r}")
    found = {}
    for name, value in plain.items():
        snake = _CAPITAL.sub(lambda capital: f"_{capital[0].lower()}", str(name))
        long = _LONG.get(snake, snake)
        found[long] = changes[long](value) if long in changes else value
    return found


def _duration(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.9f}s" if is_number else value


def _mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
        for name, each in value.items()
    }


def _condition(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool) else value


def _names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _schema(value: Any) -> Any:
    kinds = {"json_schema", "jsonSchema", "protobuf_type", "protobufType"}
    is_schema = isinstance(value, dict) and kinds.isdisjoint(value)
    return {"json_schema": value} if is_schema else value


_RETRY = {"initial_backoff": _duration, "max_backoff": _duration}
_STEP: dict[str, _Change] = {
    "after": _names,
    "condition": _condition,
    "input_mapping": _mapping,
    "timeout": _duration,
    "retry_policy": lambda value: _changed(value, _RETRY),
}
_CHAIN: dict[str, _Change] = {
    "steps": lambda value: (
        [_changed(step, _STEP) for step in value] if isinstance(value, list) else value
    ),
    "input_schema": _schema,
    "output_schema": _schema,
    "output_mapping": _mapping,
    "timeout": _duration,
}


def _unreadable(message: str) -> InvalidInput:
    return invalid("chain", message, "CHAIN_UNREADABLE")
