"""What the work mechanism tells OpenTelemetry; nearly free without a provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from opentelemetry.metrics import CallbackOptions, Observation

from bxmesh.server import telemetry
from bxmesh.server.errors import MeshError
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.queue import QueueStats, WorkQueue

_QUEUE = "messaging.destination.name"

_GAUGES: tuple[tuple[str, str, str, Callable[[QueueStats], float]], ...] = (
    ("bxmesh.queue.waiting", "{item}", "Entries that no worker has taken", lambda s: s.waiting),
    ("bxmesh.queue.pending", "{item}", "Entries that some worker holds", lambda s: s.pending),
    ("bxmesh.queue.delayed", "{item}", "Retries that wait for their time", lambda s: s.delayed),
    ("bxmesh.queue.dead", "{item}", "Dead letters", lambda s: s.dead),
    ("bxmesh.queue.oldest_age", "s", "Age of the oldest entry", lambda s: s.oldest_age),
)


@dataclass
class WorkerCounters:
    """What a worker has done so far."""

    done: int = 0
    answered_with_error: int = 0
    retried: int = 0
    buried: int = 0
    cancelled: int = 0
    expired: int = 0
    lost_leases: int = 0
    busy_seconds: float = 0.0


class WorkerMetrics:
    """Counts how attempts end, for the worker itself and for OpenTelemetry."""

    def __init__(self, queue: str) -> None:
        meter = telemetry.meter()
        self.counters = WorkerCounters()
        self._queue = queue
        self._attempts = meter.create_counter(
            "bxmesh.work.attempts", "{attempt}", "Attempts at work items, by how they ended"
        )
        self._durations = meter.create_histogram(
            "bxmesh.work.handling.duration", "s", "Time that handlers took"
        )

    def count(self, end: str) -> None:
        """Counts an attempt that ended so; `end` is a field of WorkerCounters."""
        setattr(self.counters, end, getattr(self.counters, end) + 1)
        self._attempts.add(1, {_QUEUE: self._queue, "bxmesh.work.end": end})

    def handled(self, kind: str, seconds: float) -> None:
        """Records how long a handler was at an item of a kind that it knows."""
        self.counters.busy_seconds += seconds
        self._durations.record(seconds, {_QUEUE: self._queue, "bxmesh.work.kind": kind})


class QueueGauges:
    """Looks at a queue now and then and shows its depth, age and dead letters as gauges.

    One per queue and process; use it as an async context manager.
    """

    def __init__(self, queue: WorkQueue, interval: float = 5.0) -> None:
        self._queue = queue
        self._interval = interval
        self._stats: QueueStats | None = None
        self._poller: asyncio.Task[None] | None = None
        self._attributes = {_QUEUE: queue.options.name}
        meter = telemetry.meter()
        for name, unit, description, read in _GAUGES:
            meter.create_observable_gauge(name, [self._observer(read)], unit, description)

    async def __aenter__(self) -> QueueGauges:
        self._poller = asyncio.create_task(self._poll())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._poller is not None
        await end_tasks(self._poller)
        self._stats = None

    def _observer(
        self, read: Callable[[QueueStats], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            stats = self._stats
            return [] if stats is None else [Observation(read(stats), self._attributes)]

        return observe

    async def _poll(self) -> None:
        while True:
            try:
                self._stats = await self._queue.stats()
            except MeshError:
                self._stats = None
            await asyncio.sleep(self._interval)
