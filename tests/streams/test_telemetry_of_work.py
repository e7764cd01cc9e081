"""One trace from whoever enqueues to whoever does it, and metrics of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id
from redis.asyncio import Redis

from bxmesh.server import telemetry
from bxmesh.server.errors import unavailable
from bxmesh.server.streams import DeadLetters, QueueGauges, WorkContext, WorkQueue
from tests.streams.harness import options, running, text, until


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(telemetry, "_meter", provider.get_meter("test"))
    yield reader
    provider.shutdown()


def _context(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


async def second_time(context: WorkContext) -> StringValue:
    if context.attempt == 1:
        raise unavailable("Not yet.")
    return text()


async def never(context: WorkContext) -> None:
    raise unavailable("Never.")


async def test_a_trace_reaches_through_the_stream_and_retries_are_linked(
    redis: Redis, spans: InMemorySpanExporter
) -> None:
    queue = WorkQueue(redis, options())
    with telemetry.tracer().start_as_current_span("caller"):
        ticket = await queue.enqueue("work", text())
    async with running(redis, queue.options, {"work": second_time}) as worker:
        await until(lambda: worker.counters.done == 1)
    caller, send, first, second = sorted(
        spans.get_finished_spans(), key=lambda span: span.start_time or 0
    )
    assert [span.name for span in (caller, send, first, second)] == [
        "caller",
        "send test",
        "process test",
        "process test",
    ]
    assert (send.kind, first.kind, second.kind) == (
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CONSUMER,
    )
    assert send.parent == _context(caller)
    for process in (first, second):
        assert process.parent is not None
        assert process.parent.span_id == _context(send).span_id
        assert _context(process).trace_id == _context(caller).trace_id
        assert process.attributes is not None
        assert process.attributes["messaging.message.id"] == ticket.item_id
    assert first.links == ()
    assert first.status.status_code is StatusCode.ERROR
    assert (first.attributes or {})["error.type"] == "UNAVAILABLE"
    [link] = second.links
    assert link.context.span_id == _context(first).span_id
    assert second.status.status_code is StatusCode.UNSET
    assert (second.attributes or {})["bxmesh.work.attempt"] == 2


async def test_a_worker_started_within_a_span_does_not_leak_it(
    redis: Redis, spans: InMemorySpanExporter
) -> None:
    queue = WorkQueue(redis, options())
    ticket = await queue.enqueue("work", text())
    with telemetry.tracer().start_as_current_span("starting"):
        async with running(redis, queue.options, {"work": second_time}) as worker:
            await until(lambda: worker.counters.done == 1)
    process = [span for span in spans.get_finished_spans() if span.name == "process test"]
    assert process[0].links == ()
    assert ticket.item_id


async def test_a_dead_letter_keeps_the_trace(redis: Redis, spans: InMemorySpanExporter) -> None:
    queue = WorkQueue(redis, options(max_attempts=2))
    await queue.enqueue("work", text())
    async with running(redis, queue.options, {"work": never}) as worker:
        await until(lambda: worker.counters.buried == 1)
    [stored] = await DeadLetters(queue).list()
    last = spans.get_finished_spans()[-1]
    traceparent = stored.letter.trace_context["traceparent"]
    assert format_trace_id(_context(last).trace_id) in traceparent


def _points(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_queues_and_workers_are_measured(redis: Redis, reader: InMemoryMetricReader) -> None:
    queue = WorkQueue(redis, options(max_attempts=2))
    for kind in ("work", "never", "unknown"):
        await queue.enqueue(kind, text())
    handlers = {"work": second_time, "never": never}
    async with QueueGauges(queue, interval=0.01):

        def gauge(name: str) -> float | None:
            points = _points(reader).get(f"bxmesh.queue.{name}")
            return points[0].value if points else None

        await until(lambda: gauge("waiting") == 3)
        async with running(redis, queue.options, handlers) as worker:
            await until(lambda: (worker.counters.done, worker.counters.buried) == (1, 2))
        # What they show is read by and by, so the last may be told before the others.
        empty = ("waiting", "pending", "delayed", "oldest_age")
        await until(lambda: gauge("dead") == 2 and not any(map(gauge, empty)))
    points = _points(reader)
    ends = {
        point.attributes["bxmesh.work.end"]: point.value for point in points["bxmesh.work.attempts"]
    }
    assert ends == {"done": 1, "retried": 2, "buried": 2}
    durations = {
        point.attributes["bxmesh.work.kind"]: point.count
        for point in points["bxmesh.work.handling.duration"]
    }
    assert durations == {"work": 2, "never": 2}
    assert "bxmesh.queue.waiting" not in points
