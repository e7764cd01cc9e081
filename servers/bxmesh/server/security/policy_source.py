"""The policy in force, for whoever keeps to it."""

from __future__ import annotations

from typing import Protocol

from bxmesh.security.v1.policy_pb2 import Policy

__all__ = ["NO_POLICY", "PolicySource"]


class PolicySource(Protocol):
    """Holds the policy in force."""

    @property
    def policy(self) -> Policy:
        """What it says; do not change it."""

    @property
    def policy_version(self) -> int:
        """Counts up from 1 with every policy that is applied, 0 before the first."""


class _NoPolicy:
    policy = Policy()
    policy_version = 0


NO_POLICY: PolicySource = _NoPolicy()
"""Where nothing was ever applied."""
