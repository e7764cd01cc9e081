"""Whether a policy makes sense, beyond the form of its messages."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import grpc

from bxmesh.security.v1.policy_pb2 import Policy
from bxmesh.server.errors import MeshError, failed_precondition

from .addresses import admitted, is_local, rules_of
from .permissions import METHODS

__all__ = ["check_policy"]

# What this server does not enforce, it must not seem to.
_NOT_ENFORCED = (
    "data_rules",
    "module_whitelists",
    "execution_limits",
    "circuit_breakers",
)


def check_policy(policy: Policy, address: str) -> None:
    """Raises MeshError INVALID_ARGUMENT that names each rule that is wrong, or
    FAILED_PRECONDITION for one that shuts out the address it comes from."""
    wrong = list(_complaints(policy))
    if wrong:
        raise MeshError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "POLICY_INVALID",
            f"{wrong[0][0]}: {wrong[0][1]}"
            + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""),
            field_violations=wrong,
        )
    if not is_local(address) and not admitted(rules_of(policy), address):
        raise failed_precondition(
            f"The ip_rules would refuse {address}, from where you apply them. Put a rule first "
            "that admits it.",
            reason="WOULD_LOCK_OUT",
            subject=address,
        )


def _complaints(policy: Policy) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    for index, limit in enumerate(policy.rate_limits):
        field = f"policy.rate_limits[{index}]"
        if limit.name in names:
            yield f"{field}.name", f"{limit.name} is there twice"
        names.add(limit.name)
        for number, method in enumerate(limit.methods):
            if "*" not in method and method not in METHODS:
                yield f"{field}.methods[{number}]", f"there is no method {method}"
    for index, rule in enumerate(policy.ip_rules):
        try:
            ipaddress.ip_network(rule.network, strict=False)
        except ValueError:
            yield (
                f"policy.ip_rules[{index}].network",
                f"{rule.network} is no address and no network such as 192.0.2.0/24",
            )
    for name in _NOT_ENFORCED:
        if getattr(policy, name):
            yield f"policy.{name}", "is not enforced by this version; leave it out"
    if policy.signing_mode:
        yield "policy.signing_mode", "is not enforced by this version; leave it out"
    for index, quota in enumerate(policy.quotas):
        for name in ("max_bundle_bytes", "max_open_tasks", "max_queued_messages"):
            if getattr(quota, name, 0):
                yield f"policy.quotas[{index}].{name}", "is not enforced by this version"
