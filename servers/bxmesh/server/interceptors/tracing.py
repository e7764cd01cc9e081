"""A span for each RPC that the server answers."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from .. import telemetry
from ..security.permissions import METHODS
from ._wrap import Call, Interceptor, Proceed

__all__ = ["TracingInterceptor"]

# The faults of a server; any other code is an answer that the caller has to deal with.
_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class _Counter:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, message: Any) -> None:
        self.count += 1


class TracingInterceptor(Interceptor):
    """Continues the caller's trace with a server span, current while the handler runs."""

    def __init__(self) -> None:
        self._tracer = telemetry.tracer()
        self._duration = telemetry.meter().create_histogram(
            "rpc.server.call.duration", unit="s", description="Time to answer an RPC."
        )

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Puts a server span around the call."""
        method = call.method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        carrier = {key: str(value) for key, value in call.metadata if key in telemetry.CARRIER_KEYS}
        parent = telemetry.extract(carrier)
        span = self._tracer.start_span(
            method, context=parent, kind=SpanKind.SERVER, attributes=attributes
        )
        received, sent = _Counter(), _Counter()
        if span.is_recording():
            call.on_request, call.on_response = received, sent
        code = grpc.StatusCode.UNKNOWN
        started, limit = perf_counter(), call.context.time_remaining()
        token = otel_context.attach(set_span_in_context(span, parent))
        try:
            response = await proceed()
            code = _code(call.context)
            return response
        except asyncio.CancelledError:
            code = _cancellation(call.context, limit)
            raise
        except grpc.aio.AbortError:
            code = _code(call.context)
            raise
        finally:
            otel_context.detach(token)
            attributes["rpc.status_code"] = code.name
            if code is not grpc.StatusCode.OK:
                attributes["error.type"] = code.name
            counted = attributes
            if code in _REFUSALS and call.method not in METHODS:
                # Strangers make up as many methods as they like; there must not be a series of each.
                counted = {**attributes, "rpc.method": "_OTHER"}
            self._duration.record(perf_counter() - started, counted)
            if span.is_recording():
                span.set_attributes(attributes)
                span.set_attribute("bxmesh.messages.received", received.count)
                span.set_attribute("bxmesh.messages.sent", sent.count)
                if code in _SERVER_ERRORS:
                    span.set_status(Status(StatusCode.ERROR, code.name))
            span.end()


def _code(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


def _cancellation(
    context: grpc.aio.ServicerContext[Any, Any], limit: float | None
) -> grpc.StatusCode:
    remaining = context.time_remaining()
    # Time begins to run at the client: its reset at the deadline comes before the server's own, by as
    # long as the call was on its way.
    if limit is not None and remaining is not None and remaining <= min(1.0, limit / 10):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
