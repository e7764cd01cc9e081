"""What an agent has done so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

__all__ = ["AgentStats", "HandlerStats"]


@dataclass
class HandlerStats:
    """The figures of one handler."""

    handled: int = 0
    """Deliveries that were handled to a good end."""
    failed: int = 0
    """Deliveries whose handler failed."""
    seconds: float = 0.0
    """Time in handlers, together."""
    longest_seconds: float = 0.0
    """The longest time in a handler."""


@dataclass
class AgentStats:
    """The figures of an agent since it started."""

    received: int = 0
    """Deliveries that arrived, direct ones among them."""
    handled: int = 0
    """Deliveries that were handled to a good end."""
    retried: int = 0
    """Deliveries that were given back to come again."""
    dropped: int = 0
    """Deliveries that were made dead letters, and direct messages that failed."""
    cancelled: int = 0
    """Deliveries that were cancelled, or lost to others, while they were handled."""
    overflowed: int = 0
    """Direct messages that were lost because too many waited."""
    in_flight: int = 0
    """Deliveries that are at work or wait for a slot now."""
    attachments: int = 0
    """How often the agent was attached to its mailbox."""
    registrations: int = 0
    """How often it registered."""
    by_type: dict[str, HandlerStats] = field(default_factory=dict)
    """Per handler, by the type or prefix that it takes; "*" for what has none."""
    started: float = field(default_factory=time.time)
    """When it started, in seconds since 1970."""

    def copy(self) -> AgentStats:
        """Returns the figures as they are now."""
        return replace(self, by_type={name: replace(one) for name, one in self.by_type.items()})

    def took(self, name: str, seconds: float, *, ok: bool) -> None:
        """Counts a handler's run."""
        one = self.by_type.setdefault(name, HandlerStats())
        one.handled += ok
        one.failed += not ok
        one.seconds += seconds
        one.longest_seconds = max(one.longest_seconds, seconds)
