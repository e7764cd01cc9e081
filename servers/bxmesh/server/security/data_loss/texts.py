"""The texts of a message: in its payload, whatever that is, its headers and its names."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Protocol

from google.protobuf import struct_pb2, wrappers_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from bxmesh.agent.v1.message_pb2 import Envelope

__all__ = ["NAMES", "Visitor", "visit"]

NAMES = ("message_type", "message_id", "correlation_id", "conversation_id", "reply_to")
_DEEPEST = 8
_BLANKS = str.maketrans("\t\r\n", "   ")
_LEAST_LARGE = 100_000_000
# Of random digits, among which anything may be.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Visitor(Protocol):
    """Is shown every text of a message, always in the same order, and says what to put there."""

    def fixed(self, place: str, text: bytes) -> None:
        """A text, or bytes with texts in them, that cannot be changed."""

    def key(self, place: str, text: str) -> None:
        """The key of the text that comes next."""

    def text(self, place: str, text: str) -> str:
        """A text that can be changed."""

    def number(self, place: str, text: str) -> str:
        """A number that can be made a text; one that is returned as it was stays."""

    def json(self, place: str, text: str) -> str:
        """A JSON text."""


def visit(envelope: Envelope, visitor: Visitor) -> None:
    """Shows a visitor all texts of a message that a sender writes freely, and changes them."""
    for name in NAMES:
        visitor.fixed(name, getattr(envelope, name).encode())
    visitor.fixed("signature.key_id", envelope.signature.key_id.encode())
    for key in sorted(envelope.trace_context):
        if not _TRACEPARENT.fullmatch(envelope.trace_context[key]):
            visitor.fixed("trace_context", f"{key}={envelope.trace_context[key]}".encode())
    if _has_unknown(envelope):
        # They travel on to the recipient, who may know them.
        for text in _texts_of(envelope.SerializeToString(deterministic=True), _DEEPEST):
            visitor.fixed("unknown fields", text)
    for key in sorted(envelope.headers):
        visitor.key("headers", key)
        envelope.headers[key] = visitor.text("headers", envelope.headers[key])
    match envelope.payload.WhichOneof("content"):
        case "json":
            content = envelope.payload.json
            visitor.fixed("payload.json.schema", content.schema.encode())
            content.json = visitor.json("payload.json", content.json)
        case "protobuf":
            _visit_any(envelope.payload.protobuf, visitor)


_KNOWN: dict[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        struct_pb2.Struct,
        struct_pb2.Value,
        struct_pb2.ListValue,
        wrappers_pb2.StringValue,
        wrappers_pb2.BytesValue,
    )
}
_PLACE = "payload.protobuf"


def _visit_any(content: AnyMessage, visitor: Visitor) -> None:
    visitor.fixed(_PLACE, content.type_url.encode())
    kind = _KNOWN.get(content.type_url.rpartition("/")[2])
    if kind is not None:
        message = kind()
        try:
            message.ParseFromString(content.value)
        except DecodeError:
            kind = None
    if kind is None or _has_unknown(message):
        # Some texts can be read as messages, and the other way round.
        visitor.fixed(_PLACE, content.value)
        for text in _texts_of(content.value, _DEEPEST):
            if text != content.value:
                visitor.fixed(_PLACE, text)
        return
    match message:
        case wrappers_pb2.StringValue():
            message.value = visitor.text(_PLACE, message.value)
        case wrappers_pb2.BytesValue():
            _visit_bytes(message, visitor)
        case struct_pb2.Struct():
            _visit_struct(message, visitor)
        case struct_pb2.ListValue():
            for value in message.values:
                _visit_value(value, visitor)
        case struct_pb2.Value():
            _visit_value(message, visitor)
    content.value = message.SerializeToString()


def _visit_bytes(content: wrappers_pb2.BytesValue, visitor: Visitor) -> None:
    try:
        text = content.value.decode()
    except UnicodeDecodeError:
        visitor.fixed(_PLACE, content.value)
    else:
        content.value = visitor.text(_PLACE, text).encode()


def _has_unknown(message: Message) -> bool:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize()


def _visit_struct(content: struct_pb2.Struct, visitor: Visitor) -> None:
    for key in sorted(content.fields):
        visitor.key(_PLACE, key)
        _visit_value(content.fields[key], visitor)


def _visit_value(value: struct_pb2.Value, visitor: Visitor) -> None:
    match value.WhichOneof("kind"):
        case "string_value":
            value.string_value = visitor.text(_PLACE, value.string_value)
        case "number_value":
            number = _written(value.number_value)
            shown = visitor.number(_PLACE, number)
            if shown != number:
                value.string_value = shown
        case "struct_value":
            _visit_struct(value.struct_value, visitor)
        case "list_value":
            for each in value.list_value.values:
                _visit_value(each, visitor)


def _written(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def _texts_of(data: bytes, depth: int) -> Iterator[bytes]:
    """The texts in a protobuf message of which only the wire format is known; all of it when it is
    none."""
    try:
        position = 0
        while position < len(data):
            tag, position = _varint(data, position)
            size = 0
            match tag & 7:
                case 0:
                    number, position = _varint(data, position)
                    if number >= _LEAST_LARGE:
                        yield str(number).encode()
                case 1:
                    size = 8
                case 2:
                    size, position = _varint(data, position)
                case 5:
                    size = 4
                case _:
                    raise ValueError("no wire type of a message")
            if position + size > len(data):
                raise ValueError("a message that was cut off")
            part = data[position : position + size]
            position += size
            if tag & 7 == 1:
                yield from _numbers(part)
            elif tag & 7 == 2:
                yield from _part(part, depth)
    except ValueError:
        yield data


def _part(data: bytes, depth: int) -> Iterator[bytes]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text.translate(_BLANKS).isprintable() and text:
        yield data
    elif depth:
        yield from _texts_of(data, depth - 1)
    else:
        yield data


def _numbers(data: bytes) -> Iterator[bytes]:
    (real,) = struct.unpack("<d", data)
    if real.is_integer() and _LEAST_LARGE <= abs(real) < 1e20:
        yield str(int(real)).encode()
    (whole,) = struct.unpack("<Q", data)
    if _LEAST_LARGE <= whole < 10**19:
        yield str(whole).encode()


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and where it ends; raises ValueError when it does not."""
    value = shift = 0
    for byte in data[position : position + 10]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number that does not end")
