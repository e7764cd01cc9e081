"""How often who may call, from where, and with how many streams at a time."""

from __future__ import annotations

from typing import Any

from bxmesh.security.v1 import violation_pb2 as pb

from ..errors import MeshError
from ..security.addresses import Addresses, address_of
from ..security.events import SecurityEvents, ViolationEvent
from ..security.permissions import OPEN_SERVICES, known_method
from ..security.rate_limits import RateLimiter
from ..security.stream_quota import StreamQuota
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
            self._events.violation(
                _violation(pb.VIOLATION_KIND_IP, error.reason, error, "", address, call.method)
            )
            raise error
        return await proceed()


class LimitsInterceptor(Interceptor):
    """Keeps callers to the rate limits and to their number of open streams."""

    def __init__(
        self, limiter: RateLimiter, stream_quota: StreamQuota, events: SecurityEvents
    ) -> None:
        self._limiter = limiter
        self._stream_quota = stream_quota
        self._events = events

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Lets calls through that are within the limits."""
        if call.method.split("/")[1] in OPEN_SERVICES:
            return await proceed()
        identity = current_identity()
        address = address_of(call.context.peer())
        try:
            await self._limiter.count(identity, call.method, address)
        except MeshError as error:
            # The name of the limit.
            rule, kind = error.quota_violations[0][0], pb.VIOLATION_KIND_RATE_LIMIT
            self._events.violation(_violation(kind, rule, error, identity.id, address, call.method))
            raise
        if not call.streams:
            return await proceed()
        try:
            stream = await self._stream_quota.enter(identity)
        except MeshError as error:
            rule, kind = "max_open_streams", pb.VIOLATION_KIND_QUOTA
            self._events.violation(_violation(kind, rule, error, identity.id, address, call.method))
            raise
        try:
            return await proceed()
        finally:
            self._stream_quota.leave(stream)


def _violation(
    kind: pb.ViolationKind.ValueType,
    rule: str,
    error: MeshError,
    identity_id: str,
    address: str,
    method: str,
) -> ViolationEvent:
    return ViolationEvent(
        kind,
        pb.SEVERITY_LOW,
        rule,
        error.message,
        identity_id,
        address,
        action=known_method(method),
    )
