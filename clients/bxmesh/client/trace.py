"""The trace of a call, which exists whether or not anything records it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

__all__ = ["current_trace_id", "traced"]


def current_trace_id() -> str:
    """Returns the trace under way, 32 hexadecimal digits; empty for none."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


@contextmanager
def traced(name: str) -> Iterator[str]:
    """Runs its body in a span of this name and gives the trace's id, 32 hexadecimal digits.

    Without a tracer provider the body runs under a context of its own making, so that the server's
    spans still belong to one trace that the caller can name.
    """
    tracer = trace.get_tracer("bxmesh.client")
    with tracer.start_as_current_span(name) as span:
        context = span.get_span_context()
        if context.is_valid:
            yield trace.format_trace_id(context.trace_id)
            return
    context = SpanContext(
        trace_id=secrets.randbits(128) or 1,
        span_id=secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    with trace.use_span(NonRecordingSpan(context)):
        yield trace.format_trace_id(context.trace_id)
