"""Traces and metrics of this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = [
    "CARRIER_KEYS",
    "Telemetry",
    "configure",
    "current_trace_id",
    "extract",
    "inject",
    "meter",
    "tracer",
]

_NAME = "bxmesh"
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_EXPORT_TIMEOUT = "OTEL_EXPORTER_OTLP_TIMEOUT"
_EXPORT_SECONDS = 2

_propagator = TraceContextTextMapPropagator()

CARRIER_KEYS = frozenset(_propagator.fields)
"""The metadata keys, and stream entry fields, in which a trace context travels."""


class Telemetry:
    """The exporters of this process; `shutdown` sends what they still hold."""

    def __init__(
        self,
        role: str,
        *,
        trace_output: str | None = None,
        prometheus_port: int | None = None,
        prometheus_host: str = "127.0.0.1",
    ) -> None:
        resource = Resource.create(
            {
                "service.name": f"{_NAME}-{role}",
                "service.version": _version(),
                "process.pid": os.getpid(),
            }
        )
        processors, readers = _otlp() if os.environ.get(_ENDPOINT) else ([], [])
        if trace_output == "console":
            processors.append(_TreePrinter(sys.stderr))
        elif trace_output is not None:
            processors.append(BatchSpanProcessor(_JsonLines(Path(trace_output))))
        self._prometheus = None
        if prometheus_port is not None:
            self._prometheus = _Prometheus(prometheus_host, prometheus_port)
            readers.append(self._prometheus.reader)
        self._tracers = TracerProvider(
            sampler=_sampler() if processors else sampling.ALWAYS_OFF, resource=resource
        )
        for processor in processors:
            self._tracers.add_span_processor(processor)
        self._meters = MeterProvider(readers, resource=resource) if readers else None
        self.tracer = self._tracers.get_tracer(_NAME, _version())
        self.meter: metrics.Meter = (
            self._meters.get_meter(_NAME, _version()) if self._meters else metrics.NoOpMeter(_NAME)
        )

    @property
    def tracer_provider(self) -> trace.TracerProvider:
        """The provider for libraries that make spans of their own."""
        return self._tracers

    @property
    def prometheus_port(self) -> int | None:
        """The port of the Prometheus endpoint; None when there is none."""
        return self._prometheus.port if self._prometheus else None

    def flush(self) -> None:
        """Sends the spans and metrics held so far."""
        self._tracers.force_flush()
        if self._meters:
            self._meters.force_flush()

    def shutdown(self) -> None:
        """Sends what is held and ends the exporters; later spans are lost."""
        self._tracers.shutdown()
        if self._meters:
            self._meters.shutdown(_EXPORT_SECONDS * 1000)
        if self._prometheus:
            self._prometheus.close()


class _CurrentProvider(trace.TracerProvider):
    # OpenTelemetry takes one provider per process for good; this one follows `configure`.
    def get_tracer(self, *arguments: Any, **options: Any) -> trace.Tracer:
        return _tracers.get_tracer(*arguments, **options)


_tracers: trace.TracerProvider = trace.NoOpTracerProvider()
_tracer: trace.Tracer = trace.NoOpTracer()
_meter: metrics.Meter = metrics.NoOpMeter(_NAME)


def configure(
    role: str,
    *,
    trace_output: str | None = None,
    prometheus_port: int | None = None,
    prometheus_host: str = "127.0.0.1",
) -> Telemetry:
    """Sets up traces and metrics of this process as service bxmesh-<role>.

    Spans go to OTLP when OTEL_EXPORTER_OTLP_ENDPOINT is set, and to `trace_output`: `console`,
    a tree per trace on standard error, or a file, a line of JSON per span. With neither, spans
    have a trace id and record nothing. Call it once in each process, after any fork.
    """
    global _tracers, _tracer, _meter
    telemetry = Telemetry(
        role,
        trace_output=trace_output,
        prometheus_port=prometheus_port,
        prometheus_host=prometheus_host,
    )
    if not isinstance(trace.get_tracer_provider(), _CurrentProvider):
        trace.set_tracer_provider(_CurrentProvider())
    _tracers, _tracer, _meter = telemetry.tracer_provider, telemetry.tracer, telemetry.meter
    return telemetry


def tracer() -> trace.Tracer:
    """Returns the tracer as configured last; before that, one that records nothing."""
    return _tracer


def meter() -> metrics.Meter:
    """Returns the meter as configured last; before that, one that records nothing."""
    return _meter


def inject(carrier: MutableMapping[str, str], context: Context | None = None) -> None:
    """Writes the trace context, the current one by default, into a mapping of texts."""
    _propagator.inject(carrier, context)


def extract(carrier: Mapping[str, str]) -> Context:
    """Returns the trace context in a mapping of texts, an empty one when there is none."""
    return _propagator.extract(carrier, Context())


def current_trace_id() -> str:
    """Returns the current trace's id, 32 hexadecimal digits; empty outside of traces."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _version() -> str:
    try:
        return version(_NAME)
    except PackageNotFoundError:
        return "0"


def _sampler() -> sampling.Sampler | None:
    if "OTEL_TRACES_SAMPLER" in os.environ:
        return None
    # A caller without an exporter passes on unsampled contexts: that says nothing about us.
    return sampling.ParentBased(
        root=sampling.ALWAYS_ON, remote_parent_not_sampled=sampling.ALWAYS_ON
    )


def _otlp() -> tuple[list[SpanProcessor], list[MetricReader]]:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    # A process that ends waits so long for a collector that is away.
    timeout = None if _EXPORT_TIMEOUT in os.environ else _EXPORT_SECONDS
    return (
        [BatchSpanProcessor(OTLPSpanExporter(timeout=timeout))],
        [PeriodicExportingMetricReader(OTLPMetricExporter(timeout=timeout))],
    )


class _Prometheus:
    def __init__(self, host: str, port: int) -> None:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        self.reader = PrometheusMetricReader(registry=registry)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _JsonLines(SpanExporter):
    def __init__(self, path: Path) -> None:
        # Processes share the file: each batch is one write to its end.
        self._file = path.open("ab", buffering=0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._file.write("".join(span.to_json(indent=None) + "\n" for span in spans).encode())
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


class _TreePrinter(SpanProcessor):
    _MOST_TRACES = 256
    _MOST_SPANS = 512

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._traces: dict[int, list[ReadableSpan]] = {}

    def on_end(self, span: ReadableSpan) -> None:
        trace_id = span.context.trace_id
        is_root = span.parent is None or span.parent.is_remote
        with self._lock:
            spans = self._traces.setdefault(trace_id, [])
            if is_root or len(spans) < self._MOST_SPANS:
                spans.append(span)
            if is_root:
                del self._traces[trace_id]
            elif len(self._traces) > self._MOST_TRACES:
                del self._traces[next(iter(self._traces))]
        if is_root:
            self._out.write(_tree(spans))
            self._out.flush()


def _tree(spans: list[ReadableSpan]) -> str:
    children: dict[int | None, list[ReadableSpan]] = {}
    known = {span.context.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        parent = span.parent.span_id if span.parent else None
        children.setdefault(parent if parent in known else None, []).append(span)
    lines = [f"trace {trace.format_trace_id(spans[0].context.trace_id)}"]

    def add(parent: int | None, indent: str) -> None:
        siblings = children.get(parent, [])
        for span in siblings:
            is_last = span is siblings[-1]
            lines.append(f"{indent}{'└─' if is_last else '├─'} {_line(span)}")
            add(span.context.span_id, indent + ("   " if is_last else "│  "))

    add(None, "")
    return "\n".join(lines) + "\n"


def _line(span: ReadableSpan) -> str:
    parts = [span.name, f"{((span.end_time or 0) - (span.start_time or 0)) / 1e6:.1f} ms"]
    if span.kind is not trace.SpanKind.INTERNAL:
        parts.append(span.kind.name.lower())
    if error := (span.attributes or {}).get("error.type"):
        parts.append(str(error))
    return "  ".join(parts)
