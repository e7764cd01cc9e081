"""A span for each call of the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["tracing_interceptors"]

_propagator = TraceContextTextMapPropagator()

Continuation = Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]]


class _Tracing:
    """Starts a client span with the call and ends it with the call, however that ends.

    A call that is dropped without being cancelled ends with its channel, as does its span.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    async def _trace(
        self, continuation: Continuation, details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        method = details.method
        name = (method.decode() if isinstance(method, bytes) else method).removeprefix("/")
        span = self._tracer.start_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
        )
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(span))
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *carrier.items())
        try:
            call = await continuation(_with_metadata(details, metadata), request)
        except BaseException as error:
            _end(span, _code_of(error))
            raise
        if span.is_recording():
            call.add_done_callback(lambda done: _end(span, _result(done.code())))
        return call


class _UnaryUnary(_Tracing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await self._trace(continuation, client_call_details, request)


class _UnaryStream(_Tracing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await self._trace(continuation, client_call_details, request)


class _StreamUnary(_Tracing, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await self._trace(continuation, client_call_details, request_iterator)


class _StreamStream(_Tracing, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Any,
    ) -> Any:
        return await self._trace(continuation, client_call_details, request_iterator)


def tracing_interceptors(
    tracer_provider: TracerProvider | None = None,
) -> list[grpc.aio.ClientInterceptor]:
    """Returns the interceptors for a channel, one per kind of call.

    Calls become spans of the provider, by default that of the process; without one, the current
    trace context is passed on all the same.
    """
    tracer = trace.get_tracer("bxmesh.client", tracer_provider=tracer_provider)
    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
    return [kind(tracer) for kind in kinds]


def _with_metadata(
    details: grpc.aio.ClientCallDetails, metadata: grpc.aio.Metadata
) -> grpc.aio.ClientCallDetails:
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


def _end(span: Span, code: grpc.StatusCode) -> None:
    span.set_attribute("rpc.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute("error.type", code.name)
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()


def _code_of(error: BaseException) -> grpc.StatusCode:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code()
    return grpc.StatusCode.CANCELLED


def _result(coroutine: Coroutine[Any, Any, grpc.StatusCode]) -> grpc.StatusCode:
    # A call that is done knows its code, yet tells it to coroutines only.
    try:
        coroutine.send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    coroutine.close()
    return grpc.StatusCode.UNKNOWN
