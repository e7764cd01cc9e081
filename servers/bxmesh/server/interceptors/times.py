"""Timestamps and durations that are none: no rule of the contract can say so, and nothing reckons with
them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["bad_times", "fields_leading_to", "is_map"]

# From the year 1 to the year 9999, and as many years as there may be between two of them.
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
_LONGEST = 315_576_000_000
_NANOS = 1_000_000_000
_TIMES = frozenset((Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name))


def bad_times(message: Message, path: str = "") -> Iterator[str]:
    """Yields the paths of the fields of a message that hold a time which is none."""
    for field in _fields(message.DESCRIPTOR):
        name = f"{path}.{field.name}" if path else field.name
        if not field.is_repeated:
            if message.HasField(field.name):
                yield from _of_value(getattr(message, field.name), name)
        elif is_map(field):
            for key, value in getattr(message, field.name).items():
                yield from _of_value(value, f'{name}["{key}"]')
        else:
            for index, value in enumerate(getattr(message, field.name)):
                yield from _of_value(value, f"{name}[{index}]")


def _of_value(value: Message, path: str) -> Iterator[str]:
    match value:
        case Timestamp():
            if not (_FIRST <= value.seconds <= _LAST and 0 <= value.nanos < _NANOS):
                yield path
        case Duration():
            opposed = value.seconds * value.nanos < 0
            if opposed or abs(value.seconds) > _LONGEST or abs(value.nanos) >= _NANOS:
                yield path
        case _:
            yield from bad_times(value, path)


@cache
def _fields(kind: Descriptor) -> tuple[FieldDescriptor, ...]:
    return fields_leading_to(kind, _TIMES)


def fields_leading_to(kind: Descriptor, wanted: frozenset[str]) -> tuple[FieldDescriptor, ...]:
    """Returns the fields of a kind of message that are, or within which there may be, messages of some
    full names."""
    return tuple(field for field in kind.fields if _leads(field, wanted, frozenset()))


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _leads(field: FieldDescriptor, wanted: frozenset[str], seen: frozenset[str]) -> bool:
    inner = field.message_type
    if inner is None or inner.full_name in seen:
        return False
    if is_map(field):
        return _leads(inner.fields_by_name["value"], wanted, seen)
    if inner.full_name in wanted:
        return True
    return any(_leads(each, wanted, seen | {inner.full_name}) for each in inner.fields)
