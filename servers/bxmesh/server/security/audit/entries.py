"""Entries of the audit log: how events become them, and how they hang together."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.security.v1.audit_pb2 import AuditEntry

from ..events import AuditEvent

__all__ = ["NO_HASH", "StampedEvent", "chained", "keyed_hash"]

NO_HASH = bytes(32)
"""What the first entry has as the hash of the one before."""

_LONGEST = 256
_MOST_DETAILS = 16
_CUT = "…"


@dataclass(frozen=True, slots=True)
class StampedEvent:
    """An event with what is known of its moment."""

    event: AuditEvent
    time: Timestamp
    trace_id: str = ""


def chained(key: bytes, stamped: StampedEvent, sequence: int, previous: bytes) -> AuditEntry:
    """Returns the entry of an event at its place, after the entry with the hash `previous`."""
    event = stamped.event
    entry = AuditEntry(
        sequence=sequence,
        event_time=stamped.time,
        event_type=_cut(event.event_type),
        identity_id=_cut(event.identity_id),
        address=_cut(event.address),
        method=_cut(event.method),
        resource=_cut(event.resource),
        outcome=_cut(event.outcome),
        details={
            _cut(name): _cut(value) for name, value in list(event.details.items())[:_MOST_DETAILS]
        },
        trace_id=_cut(stamped.trace_id),
        previous_hash=previous,
    )
    entry.hash = keyed_hash(key, entry)
    return entry


def keyed_hash(key: bytes, entry: AuditEntry) -> bytes:
    """Returns the hash that an entry must have."""
    content = AuditEntry()
    content.CopyFrom(entry)
    content.ClearField("hash")
    return hmac.digest(key, content.SerializeToString(deterministic=True), "sha256")


def _cut(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + _CUT
