"""What all models have in common."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Asked", "Name", "Told", "duration", "moment", "seconds"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A letter or digit, then letters, digits, ".", "_" or "-"."""


class Asked(BaseModel):
    """Something that callers send."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
