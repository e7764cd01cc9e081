"""Payloads: what messages, tasks and results carry, as Python values."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import json_format, symbol_database
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from bxmesh.agent.v1.message_pb2 import JsonPayload, Payload
from bxmesh.client.errors import InvalidInput
from bxmesh.client.names import invalid

__all__ = ["PayloadMismatch", "decode", "encode", "read"]

T = TypeVar("T")

_MOST_VIOLATIONS = 20


class PayloadMismatch(InvalidInput):
    """A payload is not what its handler or reader expects; see `field_violations`."""

    def __init__(self, message: str, violations: list[tuple[str, str]] | None = None) -> None:
        super().__init__(
            message,
            code=grpc.StatusCode.INVALID_ARGUMENT,
            reason="PAYLOAD_MISMATCH",
            field_violations=violations or [("payload", message)],
        )


def encode(value: object) -> Payload:
    """Returns the payload of a value.

    A protobuf message travels as it is; pydantic models, dataclasses and plain values travel as
    JSON, NaN and infinities as strings. None is an empty payload. Raises InvalidInput for a value
    that has no JSON.
    """
    match value:
        case None:
            return Payload()
        case Payload():
            return value
        case AnyMessage():
            return Payload(protobuf=value)
        case Message():
            packed = AnyMessage()
            packed.Pack(value)
            return Payload(protobuf=packed)
    try:
        # Models write NaN as null when they are asked for JSON directly.
        plain = to_jsonable_python(value, by_alias=True)
        text = to_json(plain, inf_nan_mode="strings").decode()
    except PydanticSerializationError as error:
        raise invalid("payload", f"the payload has no JSON: {error}") from error
    schema = type(value).__name__ if isinstance(value, BaseModel) else ""
    return Payload(json=JsonPayload(json=text, schema=schema))


def decode(payload: Payload) -> Any:
    """Returns the value of a payload: parsed JSON, a protobuf message, or None for none.

    A protobuf message of a type that is not imported here stays a google.protobuf.Any. Raises
    PayloadMismatch for what cannot be parsed.
    """
    match payload.WhichOneof("content"):
        case "json":
            try:
                return json.loads(payload.json.json)
            except ValueError as error:
                raise PayloadMismatch(f"the payload is not JSON: {error}") from error
        case "protobuf":
            name = payload.protobuf.TypeName()
            try:
                kind = symbol_database.Default().GetSymbol(name)
            except KeyError:
                return payload.protobuf
            return _unpacked(payload.protobuf, kind)
    return None


def read(payload: Payload, model: type[T]) -> T:
    """Returns the payload as a protobuf message, a pydantic model or any type pydantic knows.

    JSON is read into protobuf messages too, and google.protobuf.Struct into models. Raises
    PayloadMismatch when it does not fit.
    """
    if isinstance(model, type) and issubclass(model, Message):
        return _read_message(payload, model)
    adapter: TypeAdapter[T] = _adapter(cast(Hashable, model))
    try:
        match payload.WhichOneof("content"):
            case "json":
                return adapter.validate_json(payload.json.json)
            case "protobuf":
                return adapter.validate_python(_plain(payload.protobuf, model))
        return adapter.validate_python({})
    except ValidationError as error:
        violations = [
            (".".join(map(str, ("payload", *one["loc"]))), one["msg"])
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        what = "; ".join(f"{field}: {said}" for field, said in violations[:3])
        raise PayloadMismatch(
            f"the payload is no {_name(model)}: {what}", violations[:_MOST_VIOLATIONS]
        ) from error


def _read_message(payload: Payload, model: type[T]) -> T:
    kind: Any = model
    if payload.WhichOneof("content") == "json":
        try:
            message: T = json_format.Parse(payload.json.json, kind())
        except json_format.ParseError as error:
            raise PayloadMismatch(f"the payload is no {kind.DESCRIPTOR.full_name}: {error}") from (
                error
            )
        return message
    packed = payload.protobuf
    if payload.HasField("protobuf") and not packed.Is(kind.DESCRIPTOR):
        raise PayloadMismatch(
            f"the payload is a {packed.TypeName() or 'message without a type'}, "
            f"not a {kind.DESCRIPTOR.full_name}"
        )
    unpacked: T = _unpacked(packed, kind)
    return unpacked


def _unpacked(packed: AnyMessage, kind: Any) -> Any:
    message = kind()
    try:
        message.ParseFromString(packed.value)
    except DecodeError as error:
        raise PayloadMismatch(f"the payload is no {kind.DESCRIPTOR.full_name}: {error}") from error
    return message


def _plain(packed: AnyMessage, model: type[Any]) -> Any:
    for kind in (Struct, Value, ListValue):
        if packed.Is(kind.DESCRIPTOR):
            return json_format.MessageToDict(_unpacked(packed, kind))
    raise PayloadMismatch(f"the payload is a {packed.TypeName()}, not a {_name(model)} as JSON")


def _name(model: type[Any]) -> str:
    return getattr(model, "__name__", str(model))


@lru_cache(maxsize=1024)
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)
