"""Queues: mailboxes of agents and the work of capabilities, in figures."""

from __future__ import annotations

from dataclasses import dataclass

from bxmesh.agent.v1 import queue_pb2 as pb

__all__ = ["QueueStats", "Replay"]


@dataclass(frozen=True)
class Replay:
    """What is delivered again."""

    replayed: int
    """How many messages or dead letters."""
    remaining: int = 0
    """Dead letters that fit and are still there: unreadable, or beyond the limit."""
    next_entry_id: str = ""
    """Where to go on with messages when there are more."""


@dataclass(frozen=True)
class QueueStats:
    """The figures of one queue."""

    queue: str
    """agent/NAME or capability/NAME."""
    waiting: dict[str, int]
    """What waits, by priority."""
    in_flight: int
    """What is delivered and not answered."""
    delayed: int
    """What waits for its next attempt."""
    dead_letters: int
    """Dead letters."""
    oldest_age: float
    """How long the oldest has waited, in seconds."""
    capacity: int
    """How many it takes at most."""
    connections: int
    """Connections that read it."""
    delivery_rate: float
    """Deliveries per second over the last minute."""
    acknowledged: int
    """Acknowledged since the state directory was made."""
    redelivered: int
    """Delivered more than once, likewise."""
    expired: int
    """Expired before they were delivered, likewise."""

    @classmethod
    def from_message(cls, message: pb.QueueStats) -> QueueStats:
        """Returns the figures that the message holds."""
        return cls(
            queue=message.queue,
            waiting={
                name.removeprefix("PRIORITY_").lower(): count
                for name, count in sorted(message.waiting.items())
            },
            in_flight=message.in_flight,
            delayed=message.delayed,
            dead_letters=message.dead_letters,
            oldest_age=message.oldest_age.ToTimedelta().total_seconds(),
            capacity=message.capacity,
            connections=message.connections,
            delivery_rate=message.delivery_rate,
            acknowledged=message.acknowledged,
            redelivered=message.redelivered,
            expired=message.expired,
        )
