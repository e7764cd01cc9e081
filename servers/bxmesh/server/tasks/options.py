"""How tasks behave."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bxmesh.server.streams.seals import UNSEALED, Seals


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How tasks behave. Times are in seconds."""

    timeout: float = 3600.0
    """How long a task may take when neither it nor the capability says so."""
    patience: float = 30 * 86400.0
    """How long a task may wait for its first agent."""
    max_attempts: int = 3
    """How often a task is tried when its retry policy does not say so."""
    initial_backoff: float = 1.0
    """The first retry waits a random time up to this, each further one up to twice as long."""
    max_backoff: float = 60.0
    """No retry waits longer, unless the policy says so."""
    most_open: int = 100_000
    """Tasks that have not ended; beyond that assigning answers RESOURCE_EXHAUSTED."""
    most_demands: int = 10_000
    """Different sets of capabilities or agents that tasks wait for at a time."""
    most_ended: int = 200_000
    """Ended tasks that are kept; the oldest go first."""
    lifetime: float = 7 * 86400.0
    """How long an ended task is kept."""
    request_lifetime: float = 3600.0
    """How long a request id is remembered."""
    most_events: int = 64
    """Changes of one task that a watch may resume from, the latest."""
    most_spans: int = 100_000
    """Ends of tasks and attempts that figures are made of, the latest."""
    span_lifetime: float = 30 * 86400.0
    """How long they are kept."""
    max_depth: int = 16
    """How many parents a task may have above it."""
    seals: Seals = UNSEALED
    """What their deliveries are sealed with."""

    def for_scripts(self) -> str:
        """What the scripts need to know, as JSON; times in microseconds."""
        return json.dumps(
            {
                "patience": int(self.patience * 1e6),
                "lifetime": int(self.lifetime * 1e6),
                "most_ended": self.most_ended,
                "most_open": self.most_open,
                "most_demands": self.most_demands,
                "most_events": self.most_events,
                "most_spans": self.most_spans,
            }
        )
