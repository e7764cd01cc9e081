"""How often who may call, from where, and with how many streams at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bxmesh.security.v1 import violation_pb2 as pb

from ..errors import MeshError, resource_exhausted
from ..security.addresses import Addresses, address_of
from ..security.events import SecurityEvents, ViolationEvent
from ..security.identities import Identity
from ..security.permissions import OPEN_SERVICES
from ..security.policy_source import PolicySource
from ..security.rate_limits import RateLimiter
from ._wrap import Call, Interceptor, Proceed
from .authentication import current_identity

__all__ = ["AddressInterceptor", "LimitsInterceptor"]


class AddressInterceptor(Interceptor):
    """Refuses calls from addresses that are not admitted, before it looks at anything else."""

    def __init__(self, addresses: Addresses, events: SecurityEvents) -> None:
        self._addresses = addresses
        self._events = events

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Lets calls from admitted addresses through."""
        address = address_of(call.context.peer())
        error = self._addresses.refusal(address)
        if error is not None:
            _tell(self._events, pb.VIOLATION_KIND_IP, error, "", address, call.method)
            raise error
        return await proceed()


class LimitsInterceptor(Interceptor):
    """Keeps callers to the rate limits and, on this server, to their number of open streams."""

    def __init__(
        self, limiter: RateLimiter, policies: PolicySource, events: SecurityEvents
    ) -> None:
        self._limiter = limiter
        self._policies = policies
        self._events = events
        self._streams: Counter[str] = Counter()

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Lets calls through that are within the limits."""
        if call.method.split("/")[1] in OPEN_SERVICES:
            return await proceed()
        identity = current_identity()
        address = address_of(call.context.peer())
        try:
            await self._limiter.count(identity, call.method, address)
        except MeshError as error:
            kind = pb.VIOLATION_KIND_RATE_LIMIT
            _tell(self._events, kind, error, identity.id, address, call.method)
            raise
        if not call.streams:
            return await proceed()
        try:
            self._check_streams(identity)
        except MeshError as error:
            kind = pb.VIOLATION_KIND_QUOTA
            _tell(self._events, kind, error, identity.id, address, call.method)
            raise
        self._streams[identity.id] += 1
        try:
            return await proceed()
        finally:
            self._streams[identity.id] -= 1
            if not self._streams[identity.id]:
                del self._streams[identity.id]

    def _check_streams(self, identity: Identity) -> None:
        most = min(
            (
                quota.max_open_streams
                for quota in self._policies.policy.quotas
                if quota.max_open_streams
                and (
                    not quota.identities
                    or identity.id in quota.identities
                    or not identity.roles.isdisjoint(quota.identities)
                )
            ),
            default=None,
        )
        if most is not None and self._streams[identity.id] >= most:
            raise resource_exhausted(
                f"{identity.id} has {most} streams open on this server already. Close one.",
                retry_after=1.0,
                reason="TOO_MANY_STREAMS",
                subject=f"identity:{identity.id}",
            )


def _tell(
    events: SecurityEvents,
    kind: pb.ViolationKind.ValueType,
    error: MeshError,
    identity_id: str,
    address: str,
    method: str,
) -> None:
    events.violation(
        ViolationEvent(
            kind,
            pb.SEVERITY_LOW,
            rule=error.quota_violations[0][0] if error.quota_violations else error.reason,
            message=error.message,
            identity_id=identity_id,
            address=address,
            action=method,
        )
    )
