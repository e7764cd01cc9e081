"""The data rules of a policy, made ready."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from bxmesh.security.v1.policy_pb2 import (
    DATA_ACTION_ALLOW,
    DATA_ACTION_BLOCK,
    DATA_ACTION_QUARANTINE,
    DATA_ACTION_REDACT,
    DataAction,
    DataRule,
    Detector,
    Policy,
)

from ..patterns import Matcher, matcher
from .detectors import DETECTORS, own_pattern
from .finding import Finder

__all__ = ["BY_STRICTNESS", "Rule", "complaints", "rules_of"]

BY_STRICTNESS = (DATA_ACTION_ALLOW, DATA_ACTION_REDACT, DATA_ACTION_QUARANTINE, DATA_ACTION_BLOCK)
"""What quarantine would let somebody release, a block does not."""

_log = logging.getLogger(__name__)
_OWN = "PATTERN"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with what finds its data."""

    name: str
    label: str
    """The detector's name, which also stands in the place of what is redacted."""
    key: str
    """The same for rules that look for the same."""
    finder: Finder
    action: DataAction.ValueType
    types: Matcher | None

    def is_for(self, message_type: str) -> bool:
        """Whether a type of messages is guarded by it."""
        return self.types is None or bool(self.types.fullmatch(message_type))


def rules_of(policy: Policy) -> list[Rule]:
    """Returns the rules of a policy."""
    rules = []
    for rule in policy.data_rules:
        try:
            rules.append(_rule(rule))
        except ValueError as error:
            # Such a policy is refused when it is applied.
            _log.error("the data rule %s is left out: %s", rule.name, error)
    return rules


def complaints(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yields the fields of data rules that are wrong, and why."""
    names: set[str] = set()
    for index, rule in enumerate(policy.data_rules):
        field = f"policy.data_rules[{index}]"
        if rule.name in names:
            yield f"{field}.name", f"{rule.name} is there twice"
        names.add(rule.name)
        if bool(rule.detector) == bool(rule.pattern):
            yield field, "needs a detector or a pattern, and not both"
        elif rule.pattern:
            try:
                own_pattern(rule.pattern)
            except ValueError as error:
                yield f"{field}.pattern", str(error)


def _rule(rule: DataRule) -> Rule:
    if rule.detector:
        label = Detector.Name(rule.detector).removeprefix("DETECTOR_")
        key, finder = label, DETECTORS[rule.detector]
    else:
        label, key, finder = _OWN, f"{_OWN} {rule.pattern}", own_pattern(rule.pattern)
    return Rule(rule.name, label, key, finder, rule.action, matcher(rule.message_types))
