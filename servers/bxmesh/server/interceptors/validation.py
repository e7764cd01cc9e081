"""The rules of the contract, enforced on every request message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import cache
from typing import Any

import grpc
import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from ..errors import MeshError, invalid_argument
from ._wrap import Call, Decode, Interceptor, Proceed
from .times import bad_times, fields_leading_to, is_map

__all__ = ["ValidationInterceptor", "refuse_invalid"]

# A violation takes some 20 µs to describe: a message that is larger, and may hold a million,
# is told its first one only.
_FULLY_DESCRIBED_BYTES = 4096
# A megabyte of small values takes 2 s.
_MOST_BYTES_AT_ONCE = 64 * 1024
_VALUES = (Struct, Value, ListValue)


class _Malformed:
    pass


_MALFORMED = _Malformed()


class ValidationInterceptor(Interceptor):
    """Refuses messages that break the contract's rules, naming each field that is wrong."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Checks each request message against the rules of the contract."""
        call.on_request = self._check
        return await proceed()

    def decoder(self, decode: Decode) -> Decode:
        """Marks what cannot be decoded, so that `_check` refuses it."""

        # gRPC tells the caller of an exception here in its own words, before any interceptor.
        def decode_or_mark(data: bytes) -> Any:
            try:
                return decode(data)
            except DecodeError:
                return _MALFORMED

        return decode_or_mark

    def _check(self, message: Message | _Malformed) -> Awaitable[None] | None:
        if isinstance(message, _Malformed):
            raise invalid_argument(
                "", "The request is no message of this method's type.", reason="MESSAGE_MALFORMED"
            )
        if message.ByteSize() > _MOST_BYTES_AT_ONCE and _may_hold_many(message.DESCRIPTOR):
            # It may take seconds, in which others are to be served.
            return asyncio.to_thread(refuse_invalid, self._validator, message)
        refuse_invalid(self._validator, message)
        return None


def refuse_invalid(validator: protovalidate.Validator, message: Message) -> None:
    """Raises MeshError INVALID_ARGUMENT for a message that breaks the contract's rules."""
    violations = validator.collect_violations(_without_values(message), fail_fast=True)
    if not violations:
        for field in bad_times(message):
            raise invalid_argument(field, "holds a time that there is not")
        return
    if message.ByteSize() <= _FULLY_DESCRIBED_BYTES:
        violations = validator.collect_violations(message)
    described = [_describe(violation) for violation in violations]
    field, description = described[0]
    raise MeshError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        f"{field}: {description}" if field else description,
        field_violations=described,
    )


def _without_values(message: Message) -> Message:
    """A large message without the JSON in it, for which there are no rules: looking for some takes
    seconds, in which no other thread runs."""
    if message.ByteSize() <= _FULLY_DESCRIBED_BYTES or not _value_fields(message.DESCRIPTOR):
        return message
    emptied = type(message)()
    emptied.CopyFrom(message)
    _empty(emptied)
    return emptied


def _empty(message: Message) -> None:
    if isinstance(message, _VALUES):
        message.Clear()
        message.SetInParent()
        return
    for field in _value_fields(message.DESCRIPTOR):
        if not field.is_repeated:
            if message.HasField(field.name):
                _empty(getattr(message, field.name))
        elif is_map(field):
            for each in getattr(message, field.name).values():
                _empty(each)
        else:
            for each in getattr(message, field.name):
                _empty(each)


@cache
def _value_fields(kind: Descriptor) -> tuple[FieldDescriptor, ...]:
    return fields_leading_to(kind, frozenset(each.DESCRIPTOR.full_name for each in _VALUES))


@cache
def _may_hold_many(kind: Descriptor) -> bool:
    """Whether messages of a kind can hold any number of values, and not only long ones."""
    seen, left = set[str](), [kind]
    while left:
        for field in left.pop().fields:
            if field.is_repeated:
                return True
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                left.append(inner)
    return False


def _describe(violation: protovalidate.Violation) -> tuple[str, str]:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            path += f'["{key}"]' if isinstance(key, str) else f"[{key}]"
    return path, proto.message or proto.rule_id
