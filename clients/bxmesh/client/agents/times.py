"""Times and durations between the contract and Python."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["from_timestamp", "to_duration", "to_timestamp"]


def from_timestamp(timestamp: Timestamp) -> datetime | None:
    """Returns the time in UTC; None for one that is not set."""
    if not (timestamp.seconds or timestamp.nanos):
        return None
    return timestamp.ToDatetime(tzinfo=UTC)


def to_timestamp(time: datetime | None) -> Timestamp | None:
    """Returns the timestamp of a time; one without zone is local."""
    if time is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(time.astimezone(UTC))
    return timestamp


def to_duration(seconds: float | None) -> Duration | None:
    """Returns the duration of so many seconds."""
    if seconds is None:
        return None
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
