"""What functions take and return, between Python and the contract."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value
from pydantic_core import PydanticSerializationError, to_jsonable_python

from bxmesh.client.names import invalid

__all__ = ["from_struct", "from_value", "to_struct", "to_value"]

_LARGEST_INTEGER = 2**53


def to_struct(value: object, field: str) -> Struct:
    """Returns an object of JSON: of a dict, a dataclass or a pydantic model. Raises as `to_value`."""
    made = to_value(value, field)
    if made.WhichOneof("kind") != "struct_value":
        raise invalid(field, f"{field} must be an object with names, not {type(value).__name__}")
    return made.struct_value


def to_value(value: object, field: str) -> Value:
    """Returns JSON: of plain values, dataclasses or pydantic models.

    Raises InvalidInput, which names the place below `field`, for what JSON does not hold exactly.
    """
    try:
        plain = to_jsonable_python(value, by_alias=True)
    except (PydanticSerializationError, UnicodeDecodeError) as error:
        raise invalid(field, f"{field} has no JSON: {error}") from error
    _require_exact(plain, field)
    made = Value()
    try:
        json_format.ParseDict(plain, made)
    except json_format.ParseError as error:
        raise invalid(field, f"{field} cannot be sent: {error}") from error
    return made


def _require_exact(value: Any, place: str) -> None:
    match value:
        case dict():
            for name, item in value.items():
                _require_exact(item, f"{place}.{name}")
        case list():
            for index, item in enumerate(value):
                _require_exact(item, f"{place}[{index}]")
        case int() if abs(value) > _LARGEST_INTEGER:
            raise invalid(place, f"{place} is beyond 2^53, which JSON readers round: use text")
        case float() if not math.isfinite(value):
            raise invalid(place, f"{place} is {value}, which JSON does not have")


def from_struct(struct: Struct) -> dict[str, Any]:
    """Returns the fields of an object by name, as messages keep no order."""
    return {name: from_value(struct.fields[name]) for name in sorted(struct.fields)}


def from_value(value: Value) -> Any:
    """Returns a value; whole numbers that a double holds exactly are integers."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            whole = number.is_integer() and abs(number) <= _LARGEST_INTEGER
            return int(number) if whole else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [from_value(item) for item in value.list_value.values]
    return None
