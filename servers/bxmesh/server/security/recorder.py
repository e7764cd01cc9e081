"""Takes what the mesh tells of itself and writes it down, without making anybody wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.security.v1 import violation_pb2 as pb
from bxmesh.server import telemetry
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import Background

from .audit import AuditLog, StampedEvent
from .events import AuditEvent, SecurityEvents, ViolationEvent
from .violations import StampedViolation, Violations

__all__ = ["Recorder", "tell_forged_entry"]

_log = logging.getLogger(__name__)

_GATHER_SECONDS = 1.0
_PAUSE_SECONDS = 0.5
# So many different events may wait; a flood of one kind takes one place.
_MOST_WAITING = 10_000

_EVENT_TYPES: Mapping[pb.ViolationKind.ValueType, tuple[str, str]] = {
    pb.VIOLATION_KIND_AUTHENTICATION: ("login.failed", "UNAUTHENTICATED"),
    pb.VIOLATION_KIND_AUTHORIZATION: ("permission.denied", "PERMISSION_DENIED"),
    pb.VIOLATION_KIND_RATE_LIMIT: ("rate_limit.exceeded", "RESOURCE_EXHAUSTED"),
    pb.VIOLATION_KIND_QUOTA: ("quota.exceeded", "RESOURCE_EXHAUSTED"),
    pb.VIOLATION_KIND_DATA_LOSS: ("data_loss.hit", "PERMISSION_DENIED"),
    pb.VIOLATION_KIND_MODULE: ("module.blocked", "PERMISSION_DENIED"),
    pb.VIOLATION_KIND_IP: ("address.refused", "PERMISSION_DENIED"),
    pb.VIOLATION_KIND_EXECUTION_LIMIT: ("execution_limit.exceeded", "RESOURCE_EXHAUSTED"),
    pb.VIOLATION_KIND_SIGNATURE: ("signature.refused", "PERMISSION_DENIED"),
    pb.VIOLATION_KIND_MESSAGE: ("message.refused", "PERMISSION_DENIED"),
    pb.VIOLATION_KIND_FORGERY: ("forgery.refused", "DATA_LOSS"),
}


class _Waiting:
    """Events that are alike: the first of them, and how many."""

    __slots__ = ("count", "event", "time", "trace_id")

    def __init__(self, event: AuditEvent | ViolationEvent) -> None:
        self.event = event
        self.time = Timestamp()
        self.time.GetCurrentTime()
        self.trace_id = telemetry.current_trace_id()
        self.count = 1


class Recorder(Background):
    """The SecurityEvents of a server; an async context manager, within which it writes."""

    def __init__(
        self,
        log: AuditLog,
        violations: Violations,
        on_violation: Callable[[ViolationEvent], None] = lambda event: None,
    ) -> None:
        """Takes what is called with each violation at once, such as what blocks addresses."""
        self._log = log
        self._violations = violations
        self._on_violation = on_violation
        self._waiting: OrderedDict[Any, _Waiting] = OrderedDict()
        self._dropped = 0
        self._news = asyncio.Event()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        try:
            await self.flush()
        except (*REDIS_ERRORS, OSError) as problem:
            _log.warning("%d security events are lost: %s", len(self._waiting), problem)

    async def audit(self, event: AuditEvent) -> None:
        """Writes to the audit log and returns when it is there."""
        waiting = _Waiting(event)
        await self._log.append([StampedEvent(event, waiting.time, waiting.trace_id)])

    def note(self, event: AuditEvent) -> None:
        """Writes to the audit log soon; a flood of the same becomes one entry per second."""
        key = (event.event_type, event.identity_id, event.address, event.method, event.resource)
        self._take(key, event)

    def violation(self, event: ViolationEvent) -> None:
        """Records a violation and its line in the audit log soon; likewise."""
        key = (
            event.kind,
            event.severity,
            event.identity_id,
            event.address,
            event.action,
            event.rule,
            event.resource,
        )
        self._take(key, event)
        self._on_violation(event)

    def _take(self, key: Any, event: AuditEvent | ViolationEvent) -> None:
        if known := self._waiting.get(key):
            known.count += 1
        elif len(self._waiting) >= _MOST_WAITING:
            self._dropped += 1
        else:
            self._waiting[key] = _Waiting(event)
            self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            began = time.monotonic()
            try:
                await self.flush()
            except (*REDIS_ERRORS, OSError) as error:
                _log.warning("security events wait: %s", error)
                self._news.set()
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            await asyncio.sleep(max(0.0, began + _GATHER_SECONDS - time.monotonic()))

    async def flush(self) -> None:
        """Writes down all that waits. Raises what Redis raises; what is not written waits on."""
        batch, self._waiting = self._waiting, OrderedDict()
        dropped, self._dropped = self._dropped, 0
        if dropped:
            _log.error("%d security events were dropped: too many different ones at once", dropped)
            lost = _Waiting(AuditEvent("events.dropped", details={"count": str(dropped)}))
            batch["dropped"] = lost
        lines, violations = [], []
        for waiting in batch.values():
            lines.append(StampedEvent(_line(waiting), waiting.time, waiting.trace_id))
            if isinstance(waiting.event, ViolationEvent):
                violations.append(
                    StampedViolation(waiting.event, waiting.time, waiting.trace_id, waiting.count)
                )
        try:
            await self._log.append(lines)
        except BaseException:
            self._put_back(batch)
            raise
        await self._violations.add(violations)

    def _put_back(self, batch: OrderedDict[Any, _Waiting]) -> None:
        for key, waiting in batch.items():
            if known := self._waiting.get(key):
                known.count += waiting.count
            else:
                self._waiting[key] = waiting


def _line(waiting: _Waiting) -> AuditEvent:
    event, count = waiting.event, waiting.count
    details = {"count": str(count)} if count > 1 else {}
    if isinstance(event, AuditEvent):
        return AuditEvent(
            event.event_type,
            event.identity_id,
            event.address,
            event.method,
            event.resource,
            event.outcome,
            {**event.details, **details},
        )
    event_type, outcome = _EVENT_TYPES[event.kind]
    return AuditEvent(
        event_type,
        event.identity_id,
        event.address,
        event.action,
        event.resource,
        event.outcome or outcome,
        {"rule": event.rule, **details},
    )


def tell_forged_entry(events: SecurityEvents, stream: str) -> None:
    """Tells of an entry of a stream that nobody with the mesh key made."""
    events.violation(
        ViolationEvent(
            pb.VIOLATION_KIND_FORGERY,
            pb.SEVERITY_CRITICAL,
            rule="FORGED_ENTRY",
            message="A stream held work without a seal of this mesh; it is a dead letter now.",
            resource=f"stream/{stream}",
        )
    )
