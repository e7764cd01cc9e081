"""Dead letters: what could not be handled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from bxmesh.agent.v1 import queue_pb2 as pb
from bxmesh.client.agents.messages import Message
from bxmesh.client.agents.tasks import Task
from bxmesh.client.agents.times import from_timestamp, to_timestamp
from bxmesh.client.errors import BxmeshError, from_status

__all__ = ["DeadLetter", "DeadLetterFilter", "to_filter"]


class DeadLetterFilter(TypedDict, total=False):
    """Which dead letters are meant. All that is given must hold."""

    dead_letter_ids: Iterable[str]
    """These."""
    agent_id: str
    """Out of this agent's mailbox."""
    capability: str
    """Out of the queue of this capability."""
    type: str
    """Of this message or task type."""
    reason: str
    """With this reason."""
    start_time: datetime | None
    """Not given up before."""
    end_time: datetime | None
    """Given up before."""


@dataclass(frozen=True)
class DeadLetter:
    """A message or task that could not be handled."""

    dead_letter_id: str
    """The name."""
    content: Message | Task | bytes
    """What it was; bytes for what could not be read, at most its first 64 KiB."""
    error: BxmeshError
    """Why it ended here."""
    attempts: int
    """How often it was tried."""
    first_time: datetime | None
    """When it was tried first."""
    last_time: datetime | None
    """When it was given up."""
    origin: str
    """The mailbox or queue it came from."""
    origin_entry_id: str
    """Its entry there."""
    agent_id: str
    """The agent that gave it up; empty when none did."""
    trace_context: dict[str, str]
    """W3C trace context of the last attempt."""

    @classmethod
    def from_message(cls, message: pb.DeadLetter) -> DeadLetter:
        """Returns the dead letter that the message describes."""
        content: Message | Task | bytes = message.unreadable
        match message.WhichOneof("content"):
            case "envelope":
                content = Message(message.envelope, attempt=message.attempts)
            case "task":
                content = Task.from_message(message.task)
        return cls(
            dead_letter_id=message.dead_letter_id,
            content=content,
            error=from_status(message.error),
            attempts=message.attempts,
            first_time=from_timestamp(message.first_time),
            last_time=from_timestamp(message.last_time),
            origin=message.origin,
            origin_entry_id=message.origin_entry_id,
            agent_id=message.agent_id,
            trace_context=dict(message.trace_context),
        )


def to_filter(options: DeadLetterFilter) -> pb.DeadLetterFilter:
    """Returns the filter as a message."""
    return pb.DeadLetterFilter(
        dead_letter_ids=options.get("dead_letter_ids", ()),
        agent_id=options.get("agent_id", ""),
        capability=options.get("capability", ""),
        type=options.get("type", ""),
        reason=options.get("reason", ""),
        start_time=to_timestamp(options.get("start_time")),
        end_time=to_timestamp(options.get("end_time")),
    )
