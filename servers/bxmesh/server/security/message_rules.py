"""Who may send what to whom, by the policy."""

from __future__ import annotations

from typing import NamedTuple

from bxmesh.security.v1 import violation_pb2
from bxmesh.server.errors import permission_denied

from .events import IGNORED, SecurityEvents, ViolationEvent
from .patterns import Matcher, matcher
from .policy_source import NO_POLICY, PolicySource

__all__ = ["ALL_ALLOWED", "MessageRules"]

_MOST_DECISIONS = 10_000


class _Rule(NamedTuple):
    name: str
    sender: Matcher
    recipient: Matcher
    message_type: Matcher
    allow: bool


class MessageRules:
    """Decides by the first rule that fits; without one, whoever may send messages may send any."""

    def __init__(self, policies: PolicySource, events: SecurityEvents) -> None:
        self._policies = policies
        self._events = events
        self._version = -1
        self._rules: list[_Rule] = []
        self._decisions: dict[tuple[str, str, str], str] = {}

    def allows(self, sender: str, recipient: str, message_type: str) -> bool:
        """Returns whether a message may be sent."""
        return not self._refusing(sender, recipient, message_type)

    def check(self, sender: str, recipient: str, message_type: str) -> None:
        """Raises MeshError PERMISSION_DENIED (MESSAGE_NOT_ALLOWED) for one that may not be sent."""
        rule = self._refusing(sender, recipient, message_type)
        if not rule:
            return
        error = permission_denied(
            f"The policy does not let {sender} send {message_type} to {recipient} ({rule}).",
            reason="MESSAGE_NOT_ALLOWED",
            sender=sender,
            recipient=recipient,
            message_type=message_type,
        )
        self._events.violation(
            ViolationEvent(
                violation_pb2.VIOLATION_KIND_MESSAGE,
                violation_pb2.SEVERITY_MEDIUM,
                rule=rule,
                message=error.message,
                identity_id=sender,
                action=message_type,
                resource=f"agent/{recipient}",
            )
        )
        raise error

    def _refusing(self, sender: str, recipient: str, message_type: str) -> str:
        """The name of the rule that refuses; empty when none does."""
        if self._version != self._policies.policy_version:
            self._read()
        if not self._rules:
            return ""
        asked = (sender, recipient, message_type)
        decision = self._decisions.get(asked)
        if decision is None:
            if len(self._decisions) >= _MOST_DECISIONS:
                self._decisions.clear()
            decision = self._decisions[asked] = self._decide(*asked)
        return decision

    def _decide(self, sender: str, recipient: str, message_type: str) -> str:
        for rule in self._rules:
            if (
                rule.sender.fullmatch(sender)
                and rule.recipient.fullmatch(recipient)
                and rule.message_type.fullmatch(message_type)
            ):
                return "" if rule.allow else rule.name
        return ""

    def _read(self) -> None:
        self._version = self._policies.policy_version
        self._decisions.clear()
        self._rules = []
        for index, rule in enumerate(self._policies.policy.message_permissions):
            parts = [
                matcher([pattern]) for pattern in (rule.sender, rule.recipient, rule.message_type)
            ]
            sender, recipient, message_type = (part for part in parts if part is not None)
            self._rules.append(
                _Rule(f"message_permissions[{index}]", sender, recipient, message_type, rule.allow)
            )


ALL_ALLOWED = MessageRules(NO_POLICY, IGNORED)
"""The rules where there is no policy."""
