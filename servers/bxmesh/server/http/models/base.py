"""What all models have in common."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

__all__ = ["Asked", "Integer", "Moment", "Name", "Told", "duration", "moment", "seconds"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A letter or digit, then letters, digits, ".", "_" or "-"."""


def _no_number(value: object) -> object:
    """A number would be taken for seconds since 1970."""
    if not isinstance(value, str) or "T" not in value.upper():
        raise ValueError("a date and time with its offset is needed, like 2030-01-31T12:00:00Z")
    return value


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_no_number)]
"""A date and time as in RFC 3339."""


def _one_number(value: object, info: ValidationInfo) -> object:
    """In JSON, 1.0 is an integer, and neither true nor "1" is. In a query all are texts."""
    if info.mode == "json" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("an integer is needed")
    return value


Integer = Annotated[int, Field(strict=False), BeforeValidator(_one_number)]
"""An integer as JSON has it."""


class Asked(BaseModel):
    """Something that callers send."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Told(BaseModel):
    """Something that callers get."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


def moment(message: Any, name: str) -> datetime | None:
    """Returns the time in a field; None when it is not set."""
    if not message.HasField(name):
        return None
    timestamp: Timestamp = getattr(message, name)
    return timestamp.ToDatetime(tzinfo=UTC)


def seconds(message: Duration) -> float:
    """Returns a duration in seconds."""
    return message.ToTimedelta().total_seconds()


def duration(value: float) -> Duration:
    """Returns seconds as a duration."""
    message = Duration()
    message.FromTimedelta(timedelta(seconds=value))
    return message
