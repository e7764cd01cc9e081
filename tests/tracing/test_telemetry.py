"""Where the spans and metrics of a process go."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from opentelemetry import trace

from bxmesh.server import telemetry
from bxmesh.server.telemetry import Telemetry, configure
from tests.tracing.otlp import OtlpReceiver


def work() -> str:
    """Makes two spans and returns their trace id."""
    with telemetry.tracer().start_as_current_span("outer", kind=trace.SpanKind.SERVER):
        with telemetry.tracer().start_as_current_span("inner") as span:
            span.set_attribute("error.type", "NOT_FOUND")
        return telemetry.current_trace_id()


def test_without_exporter_spans_have_ids_and_record_nothing() -> None:
    configured = configure("none")
    with telemetry.tracer().start_as_current_span("outer") as outer:
        assert not outer.is_recording()
        trace_id = telemetry.current_trace_id()
        assert re.fullmatch("[0-9a-f]{32}", trace_id)
        with telemetry.tracer().start_as_current_span("inner"):
            assert telemetry.current_trace_id() == trace_id
            carrier: dict[str, str] = {}
            telemetry.inject(carrier)
    assert trace_id in carrier["traceparent"]
    assert telemetry.current_trace_id() == ""
    configured.shutdown()


def test_carrier_keeps_the_context() -> None:
    configured = configure("none")
    with telemetry.tracer().start_as_current_span("span") as span:
        carrier: dict[str, str] = {}
        telemetry.inject(carrier)
    context = trace.get_current_span(telemetry.extract(carrier)).get_span_context()
    assert context.is_remote
    assert context.span_id == span.get_span_context().span_id
    empty = trace.get_current_span(telemetry.extract({})).get_span_context()
    assert not empty.is_valid
    configured.shutdown()


def test_shutdown_sends_what_is_held(otlp: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    configured = configure("worker")
    trace_id = work()
    assert otlp.spans() == []
    configured.shutdown()
    outer, inner = otlp.spans(trace_id)
    assert inner.parent_id == outer.span_id
    assert outer.resource["service.name"] == "bxmesh-worker"
    assert outer.resource["process.pid"] == os.getpid()


def test_shutdown_without_a_collector_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    configured = configure("worker")
    work()
    configured.shutdown()


def test_file_gets_a_line_of_json_per_span(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace_ids = []
    for role in ("server", "worker"):
        configured = configure(role, trace_output=str(path))
        trace_ids.append(work())
        configured.shutdown()
    spans = [json.loads(line) for line in path.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["inner", "outer"] * 2
    assert [span["context"]["trace_id"] for span in spans[::2]] == [f"0x{t}" for t in trace_ids]
    assert spans[0]["parent_id"] == spans[1]["context"]["span_id"]
    assert spans[0]["resource"]["attributes"]["service.name"] == "bxmesh-server"


def test_console_gets_a_tree_per_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configured = configure("server", trace_output="console")
    trace_id = work()
    configured.shutdown()
    shown = re.sub(r"\d+\.\d ms", "1.0 ms", capsys.readouterr().err)
    assert shown == (
        f"trace {trace_id}\n└─ outer  1.0 ms  server\n   └─ inner  1.0 ms  NOT_FOUND\n"
    )


def test_prometheus_endpoint_serves_the_metrics() -> None:
    configured = configure("server", prometheus_port=0)
    telemetry.meter().create_counter("bxmesh.things").add(3)
    with urlopen(f"http://127.0.0.1:{configured.prometheus_port}/metrics") as answer:
        text = answer.read().decode()
    assert re.search(r"^bxmesh_things_total\{.*\} 3\.0$", text, re.MULTILINE)
    configured.shutdown()
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{configured.prometheus_port}/metrics")


def test_libraries_follow_the_last_configuration(otlp: OtlpReceiver) -> None:
    for role in ("first", "second"):
        configured = configure(role)
        with trace.get_tracer("a library").start_as_current_span(role):
            pass
        configured.shutdown()
    assert {s.name: s.resource["service.name"] for s in otlp.spans()} == {
        "first": "bxmesh-first",
        "second": "bxmesh-second",
    }


def test_unsampled_caller_is_recorded_unless_the_environment_says_so(
    otlp: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = telemetry.extract({"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00"})
    recording = []
    for sampler in (None, "parentbased_always_on"):
        if sampler:
            monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        configured = Telemetry("server")
        span = configured.tracer.start_span("span", context=parent)
        recording.append(span.is_recording())
        span.end()
        configured.shutdown()
    assert recording == [True, False]


@pytest.mark.asyncio
async def test_tasks_have_traces_of_their_own() -> None:
    configured = configure("none")

    async def task() -> str:
        with telemetry.tracer().start_as_current_span("task"):
            await asyncio.sleep(0)
            return telemetry.current_trace_id()

    assert len(set(await asyncio.gather(*(task() for _ in range(5))))) == 5
    configured.shutdown()
