"""Keeps data in the mesh that a policy lets nobody send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from bxmesh.agent.v1.message_pb2 import Envelope
from bxmesh.security.v1 import policy_pb2, violation_pb2
from bxmesh.server.errors import MeshError, failed_precondition, permission_denied

from ..events import IGNORED, AuditEvent, SecurityEvents, ViolationEvent
from ..policy_source import NO_POLICY, PolicySource
from .content import Content, read
from .finding import Found, find
from .redaction import redacted
from .rules import BY_STRICTNESS, Rule, rules_of
from .texts import NAMES

__all__ = ["ALL_PASS", "QUARANTINED", "DataGuard", "Verdict"]

QUARANTINED = "QUARANTINED"
"""The reason of what is held."""

# What is larger is looked at beside the event loop.
_MOST_BYTES_AT_ONCE = 16 << 10

_SEVERITIES = {
    policy_pb2.DATA_ACTION_ALLOW: violation_pb2.SEVERITY_LOW,
    policy_pb2.DATA_ACTION_REDACT: violation_pb2.SEVERITY_MEDIUM,
    policy_pb2.DATA_ACTION_QUARANTINE: violation_pb2.SEVERITY_HIGH,
    policy_pb2.DATA_ACTION_BLOCK: violation_pb2.SEVERITY_HIGH,
}

_OUTCOMES = {
    policy_pb2.DATA_ACTION_QUARANTINE: "FAILED_PRECONDITION",
    policy_pb2.DATA_ACTION_BLOCK: "PERMISSION_DENIED",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a message that is not refused."""

    envelope: Envelope
    """The message as it may go on: the one that was looked at, or one without some data."""
    quarantine: MeshError | None = None
    """Why it must be held; None when it may be delivered."""


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found in a message, and what is to be done."""

    hits: tuple[tuple[Rule, Found], ...] = ()
    rule: Rule | None = None
    """The strictest of those that hit."""
    action: policy_pb2.DataAction.ValueType = policy_pb2.DATA_ACTION_ALLOW
    changed: Envelope | None = None
    """The message without the data, when that is what is to be done."""
    named: bool = False
    """Whether data are in the names of the message."""


class DataGuard:
    """Looks at messages by the rules of the policy in force; without rules it does nothing.

    Also for other things than messages: whatever is put into an envelope.
    """

    def __init__(self, policies: PolicySource, events: SecurityEvents) -> None:
        self._policies = policies
        self._events = events
        self._version = -1
        self._rules: list[Rule] = []

    async def inspect(self, envelope: Envelope, identity_id: str) -> Verdict:
        """Returns what becomes of a message; one that is signed cannot be changed.

        Raises MeshError PERMISSION_DENIED (DATA_LOSS_BLOCKED) for one that is refused.
        """
        if self._version != self._policies.policy_version:
            self._version = self._policies.policy_version
            self._rules = rules_of(self._policies.policy)
        rules = [rule for rule in self._rules if rule.is_for(envelope.message_type)]
        if not rules:
            return Verdict(envelope)
        if envelope.ByteSize() > _MOST_BYTES_AT_ONCE:
            findings = await asyncio.to_thread(_look, envelope, rules)
        else:
            findings = _look(envelope, rules)
        if not findings.hits:
            return Verdict(envelope)
        self._tell(envelope, identity_id, findings)
        return _verdict(envelope, findings)

    def released(self, agent_id: str, identity_id: str) -> None:
        """Tells that somebody let a message out of quarantine."""
        self._events.note(
            AuditEvent("quarantine.released", identity_id, resource=f"agent/{agent_id}")
        )

    def _tell(self, envelope: Envelope, identity_id: str, findings: _Findings) -> None:
        done = policy_pb2.DataAction.Name(findings.action).removeprefix("DATA_ACTION_")
        for rule, found in findings.hits:
            count = f"{len(found.spans)}{'' if found.complete else ' or more'}"
            self._events.violation(
                ViolationEvent(
                    violation_pb2.VIOLATION_KIND_DATA_LOSS,
                    _SEVERITIES[findings.action],
                    rule=rule.name,
                    message=f"A message held data ({rule.label}: {count}). What was done: {done}.",
                    identity_id=identity_id,
                    # A name may be what must not get out.
                    action="" if findings.named else envelope.message_type,
                    resource=f"agent/{envelope.recipient}" if envelope.recipient else "",
                    outcome=_OUTCOMES.get(findings.action, "OK"),
                )
            )


ALL_PASS = DataGuard(NO_POLICY, IGNORED)
"""The guard where there is no policy."""


def _look(envelope: Envelope, rules: Sequence[Rule]) -> _Findings:
    content = read(envelope)
    found = {rule.key: find(rule.finder, content.text) for rule in rules}
    hits = tuple(
        (rule, found[rule.key]) for rule in rules if found[rule.key] or not content.complete
    )
    if not hits:
        return _Findings()
    strictest = max((rule for rule, _ in hits), key=lambda rule: BY_STRICTNESS.index(rule.action))
    action, changed = strictest.action, None
    if action == policy_pb2.DATA_ACTION_REDACT:
        signed = envelope.HasField("signature")
        changed = None if signed else _redacted(envelope, content, hits)
        if changed is None:
            # What cannot be taken out must not go.
            action = policy_pb2.DATA_ACTION_BLOCK
    named = any(
        content.parts[number].place in NAMES
        for _, each in hits
        for span in each.spans
        for number, _ in content.parts_of(span)
    )
    return _Findings(hits, strictest, action, changed, named)


def _redacted(
    envelope: Envelope, content: Content, hits: Sequence[tuple[Rule, Found]]
) -> Envelope | None:
    asked = [(r, f) for r, f in hits if r.action == policy_pb2.DATA_ACTION_REDACT]
    if not content.complete or not all(found.complete for _, found in asked):
        return None
    return redacted(
        envelope, content, [(span, rule.label) for rule, found in asked for span in found.spans]
    )


def _verdict(envelope: Envelope, findings: _Findings) -> Verdict:
    rule = findings.rule
    assert rule is not None
    facts = {"rule": rule.name, "detector": rule.label}
    match findings.action:
        case policy_pb2.DATA_ACTION_BLOCK:
            raise permission_denied(
                f"The message holds data that the policy lets nobody send ({rule.name}: "
                f"{rule.label}). Take them out and send it again.",
                reason="DATA_LOSS_BLOCKED",
                **facts,
            )
        case policy_pb2.DATA_ACTION_QUARANTINE:
            error = failed_precondition(
                f"The message holds data that somebody must look at ({rule.name}: {rule.label}). "
                "It is held in quarantine; whoever operates the mesh can release it.",
                reason=QUARANTINED,
                **facts,
            )
            return Verdict(envelope, error)
    return Verdict(findings.changed or envelope)
