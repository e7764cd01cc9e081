"""The lines of the activity log.

They hold names, ids, counts and times, and of errors the code and reason: nothing of payloads, and
no text that a caller or an agent has written freely.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import ClassVar

KINDS = ("agents", "messages", "tasks", "performance", "errors")
"""The kinds of lines; each has a file of its own for every day."""

_encode = json.JSONEncoder(separators=(",", ":")).encode
_MOST_CHARACTERS = 160
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


@dataclass(slots=True, kw_only=True)
class Event:
    """Something that happened. What is None or an empty text is left out of its line."""

    kind: ClassVar[str]
    time: float = field(default_factory=time.time)
    """In Unix seconds."""
    event: str
    """What happened."""

    @property
    def day(self) -> str:
        """The UTC day, as in 2026-01-31."""
        return day_of(self.time)

    def line(self) -> bytes:
        """The line, with its end."""
        values: dict[str, object] = {"time": _utc(self.time)}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None and value != "" and each.name != "time":
                values[each.name] = _clipped(value)
        return _line(values)


@dataclass(slots=True, kw_only=True)
class AgentEvent(Event):
    """registered, left; connected, disconnected."""

    kind = "agents"
    agent_id: str
    agent_type: str = ""
    version: str = ""
    identity: str = ""
    capabilities: tuple[str, ...] | None = None
    cause: str = ""
    """How it left: deregistered, expired or replaced."""
    connection_id: str = ""
    revision: int | None = None
    """Of the registry, after the change."""


@dataclass(slots=True, kw_only=True)
class MessageEvent(Event):
    """accepted, delivered; then acknowledged, retried, dropped, expired or withdrawn."""

    kind = "messages"
    message_id: str
    message_type: str
    sender: str
    recipient: str
    priority: int
    mode: str
    """durable or direct."""
    size: int
    """Bytes of the message with its envelope."""
    correlation_id: str = ""
    conversation_id: str = ""
    attempt: int | None = None
    receivers: int | None = None
    """How many servers a direct message went to."""
    connection_id: str = ""
    seconds: float | None = None
    """Since it was accepted."""
    code: str = ""
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class TaskEvent(Event):
    """A task that is in another state: `event` is the state, in small letters."""

    kind = "tasks"
    task_id: str
    task_type: str
    owner: str
    parent_task_id: str = ""
    priority: int
    agent_id: str = ""
    attempt: int
    revision: int
    seconds: float
    """Since it was assigned to the mesh."""
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class PerformanceEvent(Event):
    """A minute: what this process did, and what waits in the whole mesh."""

    kind = "performance"
    seconds: float
    """How long the minute was."""
    counts: Mapping[str, int]
    rates: Mapping[str, float]
    """By second."""
    latencies: Mapping[str, Mapping[str, float]]
    """Median, 95th percentile and maximum in seconds."""
    depths: Mapping[str, float]


@dataclass(slots=True, kw_only=True)
class ErrorEvent(Event):
    """fault: a call answered with a fault of the server; dead_letter: work that was given up."""

    kind = "errors"
    code: str
    reason: str
    method: str = ""
    trace_id: str = ""
    queue: str = ""
    letter_id: str = ""
    item_id: str = ""
    item_kind: str = ""
    agent_id: str = ""
    attempts: int | None = None


def gap(lines: int, now: float) -> bytes:
    """The line that stands where lines are missing."""
    return _line({"time": _utc(now), "event": "lines_dropped", "lines": lines})


def known_reason(reason: str) -> str:
    """A reason as reasons are written; agents may write anything."""
    return reason if _REASON.fullmatch(reason) else "OTHER"


def day_of(seconds: float) -> str:
    """The UTC day of a time, as in 2026-01-31."""
    return _second(int(seconds))[:10]


def _utc(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1e6):06d}Z"


@lru_cache(64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _line(values: Mapping[str, object]) -> bytes:
    return _encode(values).encode() + b"\n"


def _clipped(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= _MOST_CHARACTERS else value[:_MOST_CHARACTERS] + "…"
    return round(value, 6) if isinstance(value, float) else value
