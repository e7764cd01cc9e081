"""What commands around agents read from their arguments, and how they print what they get."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message as Protobuf
from pydantic import BaseModel

from bxmesh.client.agents.dead_letters import DeadLetter
from bxmesh.client.agents.messages import Message
from bxmesh.client.agents.payloads import PayloadMismatch, decode
from bxmesh.client.agents.tasks import Task
from bxmesh.client.errors import BxmeshError

__all__ = [
    "CONTENT",
    "LABEL",
    "MOMENT",
    "age",
    "as_json",
    "counted",
    "moment",
    "plain",
    "print_json",
    "shown",
]

_MOST_SHOWN = 60
_AGO = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    # Older clicks know no argument of it.
    _Type = click.ParamType


class _Content(_Type):
    """JSON as it stands, in a file (@FILE), or on stdin (-)."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if value == "-":
                value = sys.stdin.buffer.read().decode()
            elif value.startswith("@"):
                value = Path(value[1:]).read_text(encoding="utf-8")
            return json.loads(value)
        except OSError as error:
            self.fail(f"{value[1:]} cannot be read: {error.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail("it is not UTF-8 text", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(
                f"it is not JSON ({error}); quote it for your shell, a text as '\"text\"'",
                param,
                ctx,
            )


class _Moment(_Type):
    """A time: ISO 8601, local without a zone, or how long ago (90s, 15m, 2h, 1d)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if ago := _AGO.fullmatch(value):
                return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: write 2026-01-31T12:00, or 15m for that ago")


class _Label(_Type):
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, sign, text = value.partition("=")
        if not (name and sign):
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


CONTENT, MOMENT, LABEL = _Content(), _Moment(), _Label()


def plain(value: Any) -> Any:
    """Returns what JSON can say of a value."""
    match value:
        case Task():
            return _fields(value) | {
                "parameters": _payload(value.message.spec.parameters),
                "result": _payload(value.message.result),
            }
        case Message():
            envelope = json_format.MessageToDict(
                _without_payload(value), preserving_proto_field_name=True
            )
            return plain(envelope) | {
                "priority": value.priority,
                "payload": _payload(value.envelope.payload),
            }
        case DeadLetter():
            kinds = {Message: "message", Task: "task", bytes: "unreadable"}
            return _fields(value) | {"kind": kinds[type(value.content)]}
        case BxmeshError():
            return {
                "code": value.code.name,
                "reason": value.reason,
                "message": value.message,
                "metadata": value.metadata,
            }
        case datetime():
            return moment(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Protobuf():
            return _protobuf(value)
        case BaseModel():
            return value.model_dump(mode="json")
        case dict():
            return {name: plain(each) for name, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
    return _fields(value) if is_dataclass(value) else value


def _fields(value: Any) -> dict[str, Any]:
    return {
        field.name: plain(getattr(value, field.name))
        for field in fields(value)
        if not isinstance(getattr(value, field.name), Protobuf)
    }


def _payload(payload: Any) -> Any:
    try:
        return plain(decode(payload))
    except PayloadMismatch as error:
        return {"unreadable": error.message}


def _protobuf(message: Protobuf) -> Any:
    if isinstance(message, AnyMessage):
        return {"@type": message.type_url, "value": base64.b64encode(message.value).decode()}
    return {"@type": message.DESCRIPTOR.full_name, **json_format.MessageToDict(message)}


def _without_payload(message: Message) -> Protobuf:
    envelope = type(message.envelope)()
    envelope.CopyFrom(message.envelope)
    envelope.ClearField("payload")
    return envelope


def print_json(value: Any) -> None:
    """Writes a value as one line of JSON, at once."""
    click.echo(json.dumps(plain(value)))


def shown(value: Any) -> str:
    """Returns a value as JSON for a table, cut when it is long."""
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def moment(time: datetime | None) -> str:
    """Returns a time for people and programs; empty for none."""
    return "" if time is None else time.isoformat(timespec="seconds")


def counted(number: int, thing: str) -> str:
    """Returns a number of things for people."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def age(seconds: float) -> str:
    """Returns a span of time for people."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
