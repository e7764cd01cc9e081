"""Whether a policy makes sense, beyond the form of its messages."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import grpc

from bxmesh.security.v1.policy_pb2 import CircuitBreaker, IpRule, Policy, RateLimit
from bxmesh.server.errors import MeshError, failed_precondition

from . import data_loss
from .addresses import admitted, is_local, rules_of
from .circuit_breakers import TARGET_KINDS
from .patterns import matcher
from .permissions import METHODS

__all__ = ["check_policy", "check_rate_limit"]

# Every server holds a thousand versions.
_MOST_BYTES = 256 * 1024
# With hundreds of them in one pattern a match can take seconds.
_MOST_WILDCARDS = 8
# A worker has so much before it has any work.
_LEAST_MEMORY = 128 << 20
_LONGEST_FILL_SECONDS = 366 * 86400


def check_policy(policy: Policy, address: str) -> None:
    """Raises MeshError INVALID_ARGUMENT that names each rule that is wrong, or
    FAILED_PRECONDITION for one that shuts out the address it comes from."""
    _refuse(list(_complaints(policy)))
    if not is_local(address) and not admitted(rules_of(policy), address):
        raise failed_precondition(
            f"The ip_rules would refuse {address}, from where you apply them. Put a rule first "
            "that admits it.",
            reason="WOULD_LOCK_OUT",
            subject=address,
        )


def check_rate_limit(limit: RateLimit, field: str) -> None:
    """Raises MeshError INVALID_ARGUMENT for a rate limit that makes no sense."""
    _refuse(list(_of_rate_limit(limit, field)))


def _refuse(wrong: Sequence[tuple[str, str]]) -> None:
    if wrong:
        raise MeshError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "POLICY_INVALID",
            f"{wrong[0][0]}: {wrong[0][1]}"
            + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""),
            field_violations=wrong,
        )


def _complaints(policy: Policy) -> Iterator[tuple[str, str]]:
    if policy.ByteSize() > _MOST_BYTES:
        yield "policy", f"has {policy.ByteSize()} bytes, {_MOST_BYTES} at most are taken"
        return
    names: set[str] = set()
    for index, limit in enumerate(policy.rate_limits):
        field = f"policy.rate_limits[{index}]"
        if limit.name in names:
            yield f"{field}.name", f"{limit.name} is there twice"
        names.add(limit.name)
        yield from _of_rate_limit(limit, field)
    for index, rule in enumerate(policy.ip_rules):
        yield from _of_ip_rule(rule, f"policy.ip_rules[{index}]")
    abuse = policy.abuse_block
    for name in ("window", "block_duration"):
        if abuse.violations and not abuse.HasField(name):
            yield f"policy.abuse_block.{name}", "is missing; set it, such as 60s"
    for index, permission in enumerate(policy.message_permissions):
        for name in ("sender", "recipient", "message_type"):
            field = f"policy.message_permissions[{index}].{name}"
            yield from _of_pattern(getattr(permission, name), field)
    for index, breaker in enumerate(policy.circuit_breakers):
        yield from _of_circuit_breaker(breaker, f"policy.circuit_breakers[{index}]")
    yield from data_loss.complaints(policy)
    for index, bound in enumerate(policy.execution_limits):
        field = f"policy.execution_limits[{index}]"
        if bound.capability in {each.capability for each in policy.execution_limits[:index]}:
            yield f"{field}.capability", f"{bound.capability or 'all'} is there twice"
        if not bound.max_memory_bytes and not bound.HasField("max_duration"):
            if not bound.HasField("max_cpu"):
                yield field, "bounds nothing; set max_duration, max_cpu or max_memory_bytes"
        elif 0 < bound.max_memory_bytes < _LEAST_MEMORY:
            yield (
                f"{field}.max_memory_bytes",
                f"{bound.max_memory_bytes} bytes are less than a worker needs to start; "
                f"{_LEAST_MEMORY} are the least",
            )


def _of_rate_limit(limit: RateLimit, field: str) -> Iterator[tuple[str, str]]:
    if not limit.name.isprintable():
        yield f"{field}.name", "has characters that cannot be printed"
    if limit.burst > limit.rate * _LONGEST_FILL_SECONDS:
        yield f"{field}.rate", f"would take more than a year to allow {limit.burst} calls again"
    for number, method in enumerate(limit.methods):
        path = f"{field}.methods[{number}]"
        wrong = list(_of_pattern(method, path))
        yield from wrong
        if not wrong and not _fits_any(method):
            yield path, f"there is no method {method}"


def _fits_any(method: str) -> bool:
    if "*" not in method:
        return method in METHODS
    pattern = matcher([method])
    return pattern is not None and any(map(pattern.fullmatch, METHODS))


def _of_pattern(pattern: str, field: str) -> Iterator[tuple[str, str]]:
    if pattern.count("*") > _MOST_WILDCARDS:
        yield field, f"has more than {_MOST_WILDCARDS} asterisks"


def _of_circuit_breaker(breaker: CircuitBreaker, field: str) -> Iterator[tuple[str, str]]:
    yield from _of_pattern(breaker.target, f"{field}.target")
    head, star, _ = breaker.target.partition("*")
    if not any(head.startswith(kind) or (star and kind.startswith(head)) for kind in TARGET_KINDS):
        kinds = " or ".join(TARGET_KINDS)
        yield f"{field}.target", f"fits nothing that has a circuit; begin it with {kinds}"
    if not breaker.HasField("open_duration"):
        yield f"{field}.open_duration", "is missing; set it, such as 30s"


def _of_ip_rule(rule: IpRule, field: str) -> Iterator[tuple[str, str]]:
    try:
        network = ipaddress.ip_network(rule.network, strict=False)
    except ValueError:
        yield (
            f"{field}.network",
            f"{rule.network} is no address and no network such as 192.0.2.0/24",
        )
        return
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        yield f"{field}.network", f"{rule.network} is IPv4 within IPv6; write it as IPv4"
