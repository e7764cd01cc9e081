"""One trace, from the client through server, stream, worker and engine, and back."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import InvalidInput
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


def caller(receiver: OtlpReceiver) -> TracerProvider:
    """A provider whose spans go to a receiver, as those of a caller's own program would."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({"service.name": "caller"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=receiver.endpoint, insecure=True))
    )
    return provider


@contextmanager
def span_of(provider: TracerProvider, name: str) -> Iterator[str]:
    """A span of the caller's around a block; gives its trace id."""
    with provider.get_tracer("caller").start_as_current_span(name) as span:
        yield f"{span.get_span_context().trace_id:032x}"
    provider.force_flush()


@dataclass(frozen=True)
class Calls:
    """What a caller has done, and all that was told of it."""

    receiver: OtlpReceiver
    refined: str
    """The trace of the main job."""
    steered: str
    """That of a session of three steps."""
    failed: str
    """That of a call whose input cannot be read."""
    failure: InvalidInput

    def spans(self, trace_id: str) -> list[ReceivedSpan]:
        return self.receiver.spans(trace_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calls() -> AsyncIterator[Calls]:
    """Calls of a mesh that has ended since, and with that told what it had to."""
    with OtlpReceiver() as receiver:
        provider = caller(receiver)
        with start_mesh(1, **receiver.environment()) as server:
            with span_of(provider, "refine") as refined:
                async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                    await mesh.gradients(await mesh.create_model(wheel_file(PDB_1YJP)))
            with span_of(provider, "fail") as failed:
                async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                    with pytest.raises(InvalidInput) as caught:
                        await mesh.create_model(b"not a model")
            with span_of(provider, "steer") as steered:
                async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
                    assert model.atoms is not None
                    async with mesh.session(model) as session:
                        for _ in range(3):
                            await session.step(model.atoms.sites)
        yield Calls(receiver, refined, steered, failed, caught.value)
        provider.shutdown()


def test_one_trace_across_every_hop(calls: Calls) -> None:
    spans = calls.spans(calls.refined)
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


def test_failed_call(calls: Calls) -> None:
    spans = calls.spans(calls.failed)
    assert calls.failure.trace_id == calls.failed
    process = by_name(spans, "process geometry")
    assert process.status == "ERROR"
    assert process.attributes["error.type"] == calls.failure.reason
    # The caller's mistake is no error of the server.
    assert by_name(spans, f"{SERVICE}/CreateModel").status != "ERROR"


def test_session_steps_are_in_the_trace(calls: Calls) -> None:
    spans = calls.spans(calls.steered)
    steps = [span for span in spans if span.name == "engine step"]
    assert len(steps) == 3
    assert all("process geometry" in ancestors(spans, step) for step in steps)
    assert by_name(spans, f"{SERVICE}/StreamGradients").kind == "SERVER"


async def test_work_of_a_killed_worker_stays_in_its_trace(otlp: OtlpReceiver) -> None:
    provider = caller(otlp)
    with start_mesh(1, **otlp.environment()) as server:
        with span_of(provider, "survive") as trace_id:
            async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
                model = await mesh.create_model(wheel_file(PDB_1YJP))
                (victim,) = worker_pids(server.pid)
                os.kill(victim, signal.SIGKILL)
                await mesh.gradients(model)
    provider.shutdown()
    spans = otlp.spans(trace_id)
    send = next(
        span
        for span in spans
        if span.name == "send geometry"
        and span.attributes["bxmesh.work.kind"] == "geometry.gradients"
    )
    (process,) = [each for each in spans if each.parent_id == send.span_id]
    assert process.name == "process geometry"
    assert process.status != "ERROR"
