"""The policy: one, in versions, among the security records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bxmesh.security.v1.policy_pb2 import Policy, PolicyVersion

from .mirror import Mirror
from .records import Change

__all__ = ["POLICY", "Policies"]

POLICY = "policy"
"""The kind of its records."""

_KEPT = 1000


class Policies:
    """Reads the versions from the mirror. What it returns belongs to it: copy before you change."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._current = PolicyVersion()
        self._listeners: list[Callable[[], None]] = []
        mirror.on_change(self._read)
        self._read()

    @property
    def policy(self) -> Policy:
        """What is in force; the same object until another version is."""
        return self._current.policy

    @property
    def policy_version(self) -> int:
        """The version that is in force, 0 before the first."""
        return self._current.version

    @property
    def current(self) -> PolicyVersion:
        """The version that is in force, with who applied it when and why."""
        return self._current

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has a function called after every new version."""
        self._listeners.append(listener)

    def get(self, version: int) -> PolicyVersion | None:
        """Returns a version, None when it is not kept."""
        record = self._mirror.get(POLICY, _name(version))
        return PolicyVersion.FromString(record.data) if record else None

    def newest_first(self) -> Iterator[PolicyVersion]:
        """All versions that are kept."""
        for name in sorted(self._mirror.all(POLICY), reverse=True):
            version = self.get(int(name))
            if version is not None:
                yield version

    def changes(self, new: PolicyVersion) -> list[Change]:
        """Returns what enters a version, and forgets the oldest."""
        changes = [Change(POLICY, _name(new.version), 0, new.SerializeToString())]
        if (old := _name(new.version - _KEPT)) in self._mirror.all(POLICY):
            changes.append(Change(POLICY, old, -1, None))
        return changes

    def _read(self) -> None:
        newest = max(self._mirror.all(POLICY), default="")
        if newest and int(newest) != self._current.version:
            self._current = self.get(int(newest)) or self._current
            for listener in self._listeners:
                listener()


def _name(version: int) -> str:
    return f"{version:012}"
