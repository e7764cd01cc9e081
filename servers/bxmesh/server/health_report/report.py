"""All components side by side, each in bounded time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bxmesh.health.v1 import health_pb2 as pb
from bxmesh.server.doctor.findings import Finding, Level, fail
from bxmesh.server.errors import MeshError
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.version import VERSION

__all__ = ["Check", "Examined", "HealthReport"]

_log = logging.getLogger(__name__)

_SECONDS = 2.0
_FRESH_SECONDS = 1.0
_STATES = {
    Level.OK: pb.HEALTH_STATE_HEALTHY,
    Level.WARN: pb.HEALTH_STATE_DEGRADED,
    Level.FAIL: pb.HEALTH_STATE_UNHEALTHY,
}
_WORST = (pb.HEALTH_STATE_HEALTHY, pb.HEALTH_STATE_DEGRADED, pb.HEALTH_STATE_UNHEALTHY)


@dataclass(frozen=True)
class Examined:
    """What a check found."""

    findings: Sequence[Finding]
    """The worst of them says how good the component is."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Figures, by name."""


Check = Callable[[], Awaitable[Examined]]
"""Looks at one component. What it raises is told as unknown."""


class HealthReport:
    """Looks at components when it is asked, at most once a second."""

    def __init__(self, checks: Mapping[str, Check], seconds: float = _SECONDS) -> None:
        """Takes the checks by the names of their components, and how long each may take."""
        self._checks = dict(checks)
        self._seconds = seconds
        self._began = time.monotonic()
        self._running: dict[str, asyncio.Task[pb.ComponentHealth]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._last: pb.GetHealthResponse | None = None
        self._looked_at = 0.0

    async def look(self) -> pb.GetHealthResponse:
        """Returns how all components are."""
        async with self._one_at_a_time:
            if self._last is None or time.monotonic() - self._looked_at > _FRESH_SECONDS:
                self._last = await self._look()
                self._looked_at = time.monotonic()
            return self._last

    async def close(self) -> None:
        """Ends the checks that still run."""
        await end_tasks(*self._running.values())

    async def _look(self) -> pb.GetHealthResponse:
        components = await asyncio.gather(*(self._component(name) for name in sorted(self._checks)))
        counts = Counter(component.state for component in components)
        answer = pb.GetHealthResponse(
            state=max((_overall(component.state) for component in components), key=_WORST.index),
            components=components,
            summary=pb.HealthSummary(
                total=len(components),
                healthy=counts[pb.HEALTH_STATE_HEALTHY],
                degraded=counts[pb.HEALTH_STATE_DEGRADED],
                unhealthy=counts[pb.HEALTH_STATE_UNHEALTHY],
                unknown=counts[pb.HEALTH_STATE_UNKNOWN],
            ),
            version=VERSION,
        )
        answer.check_time.GetCurrentTime()
        answer.uptime.FromMilliseconds(round(1000 * (time.monotonic() - self._began)))
        return answer

    async def _component(self, name: str) -> pb.ComponentHealth:
        # What hangs, in a thread perhaps, is waited for again instead of being begun once more.
        task = self._running.get(name)
        if task is None or task.done():
            task = self._running[name] = asyncio.create_task(self._examine(name))
        await asyncio.wait({task}, timeout=self._seconds)
        if task.done():
            return task.result()
        late = fail(
            name,
            f"does not answer within {self._seconds:g} s",
            "Look whether it hangs or is overloaded.",
        )
        return _component(name, Examined([late]), self._seconds)

    async def _examine(self, name: str) -> pb.ComponentHealth:
        began = time.perf_counter()
        try:
            examined = await self._checks[name]()
        except MeshError as error:
            return _unknown(name, error.message, time.perf_counter() - began)
        except Exception:
            # A check meets what nobody thought of; the others must be told nevertheless.
            _log.exception("%s could not be looked at", name)
            return _unknown(name, "could not be looked at", time.perf_counter() - began)
        return _component(name, examined, time.perf_counter() - began)


def _component(name: str, examined: Examined, seconds: float) -> pb.ComponentHealth:
    states = [_STATES[finding.level] for finding in examined.findings]
    worst = max(states, key=_WORST.index)
    # What is well is not of interest beside what is not.
    told = [
        finding for finding, state in zip(examined.findings, states, strict=True) if state == worst
    ]
    component = pb.ComponentHealth(
        name=name,
        state=worst,
        message="; ".join(finding.message for finding in told),
        remedy=" ".join(dict.fromkeys(finding.remedy for finding in told if finding.remedy)),
        details=examined.details,
    )
    component.response_time.FromMicroseconds(round(1e6 * seconds))
    return component


def _unknown(name: str, message: str, seconds: float) -> pb.ComponentHealth:
    component = pb.ComponentHealth(name=name, state=pb.HEALTH_STATE_UNKNOWN, message=message)
    component.response_time.FromMicroseconds(round(1e6 * seconds))
    return component


def _overall(state: pb.HealthState.ValueType) -> pb.HealthState.ValueType:
    return pb.HEALTH_STATE_DEGRADED if state == pb.HEALTH_STATE_UNKNOWN else state
