"""JSON values as Python has them, from and to google.protobuf.Value."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from google.protobuf.struct_pb2 import Struct, Value

__all__ = [
    "Json",
    "NotJsonError",
    "TooLargeError",
    "json_aside",
    "json_fields",
    "json_of",
    "value_aside",
    "value_of",
]

Json: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None

# Each level of a Value is three messages, and parsers take a hundred.
MOST_DEPTH = 30
_LARGEST_INTEGER = 2**53
_MOST_BYTES = 4 << 20
_LARGE_BYTES = 64 << 10


class NotJsonError(ValueError):
    """A value that cannot be written as JSON that every reader takes alike."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path or 'it'} {problem}")
        self.path = path
        self.problem = problem


def json_of(value: Value) -> Json:
    """Returns a value; whole numbers that a double holds exactly are integers."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if number.is_integer() and abs(number) <= _LARGEST_INTEGER:
                return int(number)
            return number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return json_fields(value.struct_value)
        case "list_value":
            return [json_of(item) for item in value.list_value.values]
    return None


def json_fields(struct: Struct) -> dict[str, Any]:
    """Returns an object's fields."""
    return {name: json_of(value) for name, value in struct.fields.items()}


def value_of(value: object, most_bytes: int = _MOST_BYTES) -> Value:
    """Returns what Python has as a Value. Raises NotJsonError, which names the place, for what is
    none: other types, NaN and infinities, integers that a double does not hold, text with lone
    surrogates, keys that are no text, more than 30 levels and more than `most_bytes`."""
    result = Value()
    _Writer(most_bytes).write(value, result, "", 0)
    return result


async def value_aside(value: object, most_bytes: int = _MOST_BYTES) -> Value:
    """`value_of` for the event loop: what is large is made in a thread, as many small values take a
    while in which others are to be served."""
    if most_bytes > _LARGE_BYTES:
        try:
            return value_of(value, _LARGE_BYTES)
        except TooLargeError:
            return await asyncio.to_thread(value_of, value, most_bytes)
    return value_of(value, most_bytes)


async def json_aside(value: Value | Struct) -> Any:
    """`json_of` and `json_fields` for the event loop, likewise."""
    if isinstance(value, Struct):
        value = Value(struct_value=value)
    if value.ByteSize() > _LARGE_BYTES:
        return await asyncio.to_thread(json_of, value)
    return json_of(value)


class TooLargeError(NotJsonError):
    """A value of more bytes than there may be."""


class _Writer:
    def __init__(self, most_bytes: int) -> None:
        self.most = self.left = most_bytes

    def write(self, value: object, into: Value, path: str, depth: int) -> None:
        if depth > MOST_DEPTH:
            raise NotJsonError(path, f"is nested deeper than {MOST_DEPTH} levels")
        self._take(2, path)
        # What sandboxes answer may pass for another type; only the plain ones are taken.
        kind = type(value)
        if value is None:
            into.null_value = 0  # type: ignore[assignment]
        elif kind is bool:
            into.bool_value = bool(value)
        elif isinstance(value, str) and kind is str:
            into.string_value = self._text(value, path)
        elif isinstance(value, int | float) and kind in (int, float):
            into.number_value = _number(value, path)
        elif isinstance(value, list | tuple):
            into.list_value.SetInParent()
            for index, item in enumerate(value):
                self.write(item, into.list_value.values.add(), f"{path}[{index}]", depth + 1)
        elif isinstance(value, Mapping):
            into.struct_value.SetInParent()
            for key, item in value.items():
                if type(key) is not str:
                    raise NotJsonError(path, f"has a key that is no text but {_kind(key)}")
                name = self._text(key, path)
                place = f"{path}.{name}" if path else name
                self.write(item, into.struct_value.fields[name], place, depth + 1)
        else:
            raise NotJsonError(path, f"is {_kind(value)}, which JSON does not have")

    def _text(self, text: str, path: str) -> str:
        # A character has a byte at least, so that what is much too long is not encoded first.
        self._take(len(text), path)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise NotJsonError(path, "has text with lone surrogates") from None
        self._take(size - len(text), path)
        return text

    def _take(self, size: int, path: str) -> None:
        self.left -= size
        if self.left < 0:
            raise TooLargeError("", f"is larger than {self.most} bytes")


def _number(value: int | float, path: str) -> float:
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise NotJsonError(path, "is an integer beyond 2^53, which JSON readers round: use text")
    number = float(value)
    if not math.isfinite(number):
        raise NotJsonError(path, f"is {number}, which JSON does not have")
    return number


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"[:80]
