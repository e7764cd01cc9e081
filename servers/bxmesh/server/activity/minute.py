"""What a process did in a minute, counted as it happens."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict

from bxmesh.server.activity.events import Event, MessageEvent, PerformanceEvent, TaskEvent

__all__ = ["Minute"]

# Of more than so many latencies a fair sample is kept.
_MOST_LATENCIES = 2048


class Minute:
    """Counts events by kind and name, and how long it took to get there."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._latencies: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, event: Event) -> None:
        """Counts an event."""
        name = f"{event.kind}.{event.event}"
        self._counts[name] += 1
        if isinstance(event, MessageEvent | TaskEvent) and event.seconds is not None:
            kept = self._latencies[name]
            if len(kept) < _MOST_LATENCIES:
                kept.append(event.seconds)
            elif (place := random.randrange(self._counts[name])) < _MOST_LATENCIES:
                kept[place] = event.seconds

    def end(self, depths: dict[str, float]) -> PerformanceEvent:
        """The figures since the last end, with how much waits where; the next minute begins."""
        now = time.monotonic()
        seconds = max(now - self._since, 0.001)
        event = PerformanceEvent(
            event="minute",
            seconds=seconds,
            counts=dict(self._counts),
            rates={name: round(count / seconds, 3) for name, count in self._counts.items()},
            latencies={name: _summary(values) for name, values in self._latencies.items()},
            depths=depths,
        )
        self._since = now
        self._counts.clear()
        self._latencies.clear()
        return event


def _summary(values: list[float]) -> dict[str, float]:
    values.sort()
    return {
        name: round(values[max(0, math.ceil(part * len(values)) - 1)], 6)
        for name, part in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    }
