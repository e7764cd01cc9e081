"""Traces across messages: what is sent carries its context, what is handled continues it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["carrier", "processing", "sending"]

_propagator = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])


def carrier() -> dict[str, str]:
    """Returns the trace under way as W3C headers."""
    context: dict[str, str] = {}
    _propagator.inject(context)
    return context


@contextmanager
def sending(
    what: str, destination: str, attributes: Mapping[str, str] | None = None
) -> Iterator[Span]:
    """Runs its body in the span `send {what}` of a producer."""
    with trace.get_tracer("bxmesh.client").start_as_current_span(
        f"send {what}",
        kind=SpanKind.PRODUCER,
        attributes={
            "messaging.system": "bxmesh",
            "messaging.operation.type": "send",
            "messaging.destination.name": destination,
            **(attributes or {}),
        },
    ) as span:
        yield span


@contextmanager
def processing(
    what: str,
    destination: str,
    context: Mapping[str, str],
    last_context: Mapping[str, str],
    attributes: Mapping[str, str | int],
) -> Iterator[Span]:
    """Runs its body in the span `process {what}` of a consumer.

    It belongs to the sender's trace and links to the last attempt's. An error that the body raises
    marks the span.
    """
    before = trace.get_current_span(_extract(last_context)).get_span_context()
    with trace.get_tracer("bxmesh.client").start_as_current_span(
        f"process {what}",
        context=_extract(context),
        kind=SpanKind.CONSUMER,
        links=[Link(before)] if before.is_valid else None,
        attributes={
            "messaging.system": "bxmesh",
            "messaging.operation.type": "process",
            "messaging.destination.name": destination,
            **attributes,
        },
    ) as span:
        yield span


def _extract(context: Mapping[str, str]) -> Context:
    return _propagator.extract(context, Context())
