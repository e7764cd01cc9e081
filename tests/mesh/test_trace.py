"""One trace, from the client through server, stream, worker and engine, and back."""

from __future__ import annotations

import os
import signal

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import InvalidInput
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.conftest import start_mesh
from tests.processes import worker_pids
from tests.tracing.otlp import OtlpReceiver, ReceivedSpan

SERVICE = "bxmesh.geometry.v1.GeometryService"


def by_name(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    """The only span of a name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def ancestors(spans: list[ReceivedSpan], span: ReceivedSpan) -> list[str]:
    by_id = {each.span_id: each for each in spans}
    names = []
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return names


@pytest.fixture
def client_spans(otlp: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """A provider whose spans go to the same receiver, as those of a caller's own program would."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({"service.name": "caller"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp.endpoint, insecure=True))
    )
    return provider


async def traced_call(server: EmbeddedMesh, provider: TracerProvider, name: str) -> str:
    """Runs the main job within a span of the caller's; returns the trace id."""
    with provider.get_tracer("caller").start_as_current_span(name) as span:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model = await mesh.create_model(wheel_file(PDB_1YJP))
            await mesh.gradients(model)
    provider.force_flush()
    return f"{span.get_span_context().trace_id:032x}"


async def test_one_trace_across_every_hop(otlp: OtlpReceiver, client_spans: TracerProvider) -> None:
    with start_mesh(1, **otlp.environment()) as server:
        trace_id = await traced_call(server, client_spans, "refine")
    spans = otlp.spans(trace_id)
    server_span = by_name(spans, f"{SERVICE}/ComputeGradients")
    assert server_span.kind == "SERVER"
    assert server_span.resource["service.name"] == "bxmesh-server"
    assert ancestors(spans, server_span)[-1] == "refine"
    sends = [span for span in spans if span.name == "send geometry"]
    assert {span.kind for span in sends} == {"PRODUCER"}
    assert server_span.span_id in {span.parent_id for span in sends}
    processes = [span for span in spans if span.name == "process geometry"]
    assert {span.kind for span in processes} == {"CONSUMER"}
    assert {span.parent_id for span in processes} == {span.span_id for span in sends}
    assert {span.resource["service.name"] for span in processes} == {"bxmesh-worker"}
    assert {span.status for span in processes} <= {"UNSET", "OK"}
    for step in ("engine parse", "engine build_restraints", "engine energies"):
        found = next(span for span in spans if span.name == step)
        assert "process geometry" in ancestors(spans, found), step
        assert ancestors(spans, found)[-1] == "refine"


async def test_failed_call(otlp: OtlpReceiver, client_spans: TracerProvider) -> None:
    with start_mesh(1, **otlp.environment()) as server:
        with client_spans.get_tracer("caller").start_as_current_span("fail") as span:
            async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                with pytest.raises(InvalidInput) as caught:
                    await mesh.create_model(b"not a model")
    trace_id = f"{span.get_span_context().trace_id:032x}"
    assert caught.value.trace_id == trace_id
    process = by_name(otlp.spans(trace_id), "process geometry")
    assert process.status == "ERROR"
    assert process.attributes["error.type"] == caught.value.reason
    # The caller's mistake is no error of the server.
    assert by_name(otlp.spans(trace_id), f"{SERVICE}/CreateModel").status != "ERROR"


async def test_session_steps_are_in_the_trace(
    otlp: OtlpReceiver, client_spans: TracerProvider
) -> None:
    with start_mesh(1, **otlp.environment()) as server:
        with client_spans.get_tracer("caller").start_as_current_span("steer") as span:
            async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
                assert model.atoms is not None
                async with mesh.session(model) as session:
                    for _ in range(3):
                        await session.step(model.atoms.sites)
    spans = otlp.spans(f"{span.get_span_context().trace_id:032x}")
    steps = [span for span in spans if span.name == "engine step"]
    assert len(steps) == 3
    assert all("process geometry" in ancestors(spans, step) for step in steps)
    assert by_name(spans, f"{SERVICE}/StreamGradients").kind == "SERVER"


async def test_work_of_a_killed_worker_stays_in_its_trace(
    otlp: OtlpReceiver, client_spans: TracerProvider
) -> None:
    with start_mesh(1, **otlp.environment()) as server:
        with client_spans.get_tracer("caller").start_as_current_span("survive") as span:
            async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                model = await mesh.create_model(wheel_file(PDB_1YJP))
                (victim,) = worker_pids(server.pid)
                os.kill(victim, signal.SIGKILL)
                await mesh.gradients(model)
    spans = otlp.spans(f"{span.get_span_context().trace_id:032x}")
    send = next(
        span
        for span in spans
        if span.name == "send geometry"
        and span.attributes["bxmesh.work.kind"] == "geometry.gradients"
    )
    (process,) = [each for each in spans if each.parent_id == send.span_id]
    assert process.name == "process geometry"
    assert process.status != "ERROR"
