"""What the mesh tells of itself to whoever guards it: the audit log and the violations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bxmesh.security.v1.violation_pb2 import Severity, ViolationKind

__all__ = ["IGNORED", "AuditEvent", "SecurityEvents", "ViolationEvent"]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A line for the audit log. Never with secrets or payloads."""

    event_type: str
    """Such as login.failed, permission.denied, api_key.revoked."""
    identity_id: str = ""
    address: str = ""
    method: str = ""
    resource: str = ""
    """What it was done to, such as bundle/sha256:… or api_key/bx_…"""
    outcome: str = "OK"
    """The name of a canonical status code."""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ViolationEvent:
    """A refused or recorded attempt. Never with secrets or payloads."""

    kind: ViolationKind.ValueType
    severity: Severity.ValueType
    rule: str
    """The rule that was broken."""
    message: str
    """For people."""
    identity_id: str = ""
    address: str = ""
    action: str = ""
    """The full method, or the capability of the work."""
    resource: str = ""
    outcome: str = ""
    """The name of a canonical status code; empty for that of the kind."""


class SecurityEvents(Protocol):
    """Takes events. The trace is that of the caller's context."""

    async def audit(self, event: AuditEvent) -> None:
        """Writes to the audit log and returns when it is there; for what must not be lost.

        Raises what Redis raises.
        """

    def note(self, event: AuditEvent) -> None:
        """Writes to the audit log soon, and never waits; a flood of the same is summed up."""

    def violation(self, event: ViolationEvent) -> None:
        """Records a violation and its line in the audit log soon, and never waits; likewise."""


class _Ignored:
    async def audit(self, event: AuditEvent) -> None:
        pass

    def note(self, event: AuditEvent) -> None:
        pass

    def violation(self, event: ViolationEvent) -> None:
        pass


IGNORED: SecurityEvents = _Ignored()
