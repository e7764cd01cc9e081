"""The spans of calls, from the client through the server, as a collector receives them."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace

from bxmesh.geometry.v1.bundle_pb2 import BundleChunk
from bxmesh.server import telemetry
from bxmesh.server.errors import not_found, unavailable
from tests.interceptors.probe import AUTHORIZED, KEY, METHOD, Context, probe
from tests.tracing.otlp import OtlpReceiver, ReceivedSpan

pytestmark = pytest.mark.asyncio

CHUNK = BundleChunk()


@pytest.fixture
def receiver(otlp: OtlpReceiver) -> Iterator[OtlpReceiver]:
    configured = telemetry.configure("test")
    yield otlp
    configured.shutdown()


async def client_and_server(receiver: OtlpReceiver) -> tuple[ReceivedSpan, ReceivedSpan]:
    """Waits for the two spans of one call, checks what belongs to each, and returns them."""
    spans = await asyncio.to_thread(receiver.wait_for, METHOD, METHOD)
    (client,) = (span for span in spans if span.kind == "CLIENT")
    (server,) = (span for span in spans if span.kind == "SERVER")
    for span in (client, server):
        assert span.name == METHOD
        assert span.attributes["rpc.system.name"] == "grpc"
        assert span.attributes["rpc.method"] == METHOD
        assert 0 < span.start < span.end
    assert server.trace_id == client.trace_id
    assert server.parent_id == client.span_id
    return client, server


def code(span: ReceivedSpan) -> tuple[str, str, str | None]:
    return (
        span.status,
        span.attributes["rpc.status_code"],
        span.attributes.get("error.type"),
    )


OK = ("UNSET", "OK", None)


async def echo(request: BundleChunk, context: Context) -> BundleChunk:
    with telemetry.tracer().start_as_current_span("step"):
        return request


async def count_down(request: BundleChunk, context: Context) -> Any:
    for offset in range(request.offset):
        with telemetry.tracer().start_as_current_span("step"):
            chunk = BundleChunk(offset=offset)
        yield chunk


async def count_down_writing(request: BundleChunk, context: Context) -> None:
    async for chunk in count_down(request, context):
        await context.write(chunk)


async def add_up(requests: Any, context: Context) -> BundleChunk:
    with telemetry.tracer().start_as_current_span("step"):
        return BundleChunk(offset=sum([request.offset async for request in requests]))


async def add_up_reading(requests: Any, context: Context) -> BundleChunk:
    total = 0
    while (request := await context.read()) is not grpc.aio.EOF:
        total += request.offset
    with telemetry.tracer().start_as_current_span("step"):
        return BundleChunk(offset=total)


async def answer_each(requests: Any, context: Context) -> Any:
    with telemetry.tracer().start_as_current_span("step"):
        async for request in requests:
            yield request


async def answer_each_writing(requests: Any, context: Context) -> None:
    with telemetry.tracer().start_as_current_span("step"):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)


async def test_without_a_parent_the_client_span_is_the_root(receiver: OtlpReceiver) -> None:
    async with probe("unary_unary", echo, traced_client=True) as (call, _):
        await call(CHUNK, metadata=AUTHORIZED)
    client, server = await client_and_server(receiver)
    assert client.parent_id == ""
    assert server.resource["service.name"] == "bxmesh-test"
    assert {"service.version", "process.pid"} <= server.resource.keys()
    assert "authorization" not in str(client.attributes | server.attributes)


async def test_unary(receiver: OtlpReceiver) -> None:
    async with probe("unary_unary", echo, traced_client=True) as (call, _):
        with telemetry.tracer().start_as_current_span("work"):
            await call(CHUNK, metadata=AUTHORIZED)
    client, server = await client_and_server(receiver)
    spans = await asyncio.to_thread(receiver.wait_for, "work", "step")
    by_name = {span.name: span for span in spans}
    assert client.parent_id == by_name["work"].span_id
    assert by_name["step"].parent_id == server.span_id
    assert {span.trace_id for span in spans} == {client.trace_id}
    assert code(client) == code(server) == OK


@pytest.mark.parametrize("handler", [count_down, count_down_writing])
async def test_server_stream(receiver: OtlpReceiver, handler: Any) -> None:
    async with probe("unary_stream", handler, traced_client=True) as (call, _):
        answers = [
            answer.offset async for answer in call(BundleChunk(offset=3), metadata=AUTHORIZED)
        ]
    assert answers == [0, 1, 2]
    client, server = await client_and_server(receiver)
    assert code(client) == code(server) == OK
    assert server.attributes["bxmesh.messages.received"] == 1
    assert server.attributes["bxmesh.messages.sent"] == 3
    spans = await asyncio.to_thread(receiver.wait_for, "step", "step", "step")
    assert {span.parent_id for span in spans if span.name == "step"} == {server.span_id}
    assert all(not span.events for span in spans)


@pytest.mark.parametrize("handler", [add_up, add_up_reading])
async def test_client_stream(receiver: OtlpReceiver, handler: Any) -> None:
    async with probe("stream_unary", handler, traced_client=True) as (call, _):
        requests = (BundleChunk(offset=offset) for offset in (1, 2, 3))
        assert (await call(requests, metadata=AUTHORIZED)).offset == 6
    client, server = await client_and_server(receiver)
    assert code(client) == code(server) == OK
    assert server.attributes["bxmesh.messages.received"] == 3
    assert server.attributes["bxmesh.messages.sent"] == 1
    spans = await asyncio.to_thread(receiver.wait_for, "step")
    assert {span.parent_id for span in spans if span.name == "step"} == {server.span_id}


@pytest.mark.parametrize("handler", [answer_each, answer_each_writing])
async def test_bidirectional_stream(receiver: OtlpReceiver, handler: Any) -> None:
    async with probe("stream_stream", handler, traced_client=True) as (call, _):
        started = call(metadata=AUTHORIZED)
        for offset in range(4):
            await started.write(BundleChunk(offset=offset))
            assert (await started.read()).offset == offset
        await started.done_writing()
        assert await started.read() is grpc.aio.EOF
    client, server = await client_and_server(receiver)
    assert code(client) == code(server) == OK
    assert server.attributes["bxmesh.messages.received"] == 4
    assert server.attributes["bxmesh.messages.sent"] == 4
    spans = await asyncio.to_thread(receiver.wait_for, "step")
    assert {span.parent_id for span in spans if span.name == "step"} == {server.span_id}


@pytest.mark.parametrize(
    ("error", "name", "server_status"),
    [
        (not_found("No such bundle."), "NOT_FOUND", "UNSET"),
        (unavailable("The queue is away."), "UNAVAILABLE", "ERROR"),
        (ValueError("a crash"), "INTERNAL", "ERROR"),
    ],
)
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_failed(
    receiver: OtlpReceiver, kind: str, error: Exception, name: str, server_status: str
) -> None:
    async def fail(request: BundleChunk, context: Context) -> BundleChunk:
        raise error

    async def fail_late(request: BundleChunk, context: Context) -> Any:
        yield CHUNK
        raise error

    handler = fail if kind == "unary_unary" else fail_late
    async with probe(kind, handler, traced_client=True) as (call, _):
        started = call(CHUNK, metadata=AUTHORIZED)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            if kind == "unary_unary":
                await started
            else:
                async for _ in started:
                    pass
    client, server = await client_and_server(receiver)
    assert code(client) == ("ERROR", name, name)
    assert code(server) == (server_status, name, name)
    assert server.events == (("exception",) if name == "INTERNAL" else ())
    assert dict(raised.value.trailing_metadata())["bxmesh-trace-id"] == server.trace_id


async def test_refused(receiver: OtlpReceiver) -> None:
    async with probe("unary_unary", echo, traced_client=True) as (call, _):
        with pytest.raises(grpc.aio.AioRpcError):
            await call(CHUNK)
    client, server = await client_and_server(receiver)
    assert code(client) == ("ERROR", "UNAUTHENTICATED", "UNAUTHENTICATED")
    assert code(server) == ("UNSET", "UNAUTHENTICATED", "UNAUTHENTICATED")


class Endless:
    """A handler of every kind that never ends by itself, and knows that it was ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def answer(self, request: Any, context: Context) -> BundleChunk:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return CHUNK

    async def stream(self, request: Any, context: Context) -> Any:
        try:
            while True:
                yield CHUNK
                await asyncio.sleep(0.001)
        finally:
            self.ended.set()


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_cancelled(receiver: OtlpReceiver, kind: str) -> None:
    endless = Endless()
    handler = endless.stream if kind.endswith("stream") else endless.answer
    async with probe(kind, handler, traced_client=True) as (call, _):
        arguments = () if kind.startswith("stream") else (CHUNK,)
        started = call(*arguments, metadata=AUTHORIZED)
        if kind.endswith("stream"):
            await started.read()
        elif kind == "stream_unary":
            await started.write(CHUNK)
            await asyncio.sleep(0.05)
        else:
            await asyncio.sleep(0.05)
        started.cancel()
        await asyncio.wait_for(endless.ended.wait(), 10)
    client, server = await client_and_server(receiver)
    assert code(client) == ("ERROR", "CANCELLED", "CANCELLED")
    assert code(server) == ("UNSET", "CANCELLED", "CANCELLED")


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_deadline(receiver: OtlpReceiver, kind: str) -> None:
    endless = Endless()
    handler = endless.stream if kind.endswith("stream") else endless.answer
    async with probe(kind, handler, traced_client=True) as (call, _):
        started = call(CHUNK, metadata=AUTHORIZED, timeout=2.0)
        assert await started.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(endless.ended.wait(), 10)
    client, server = await client_and_server(receiver)
    expected = ("ERROR", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert code(client) == code(server) == expected


async def test_dropped_call_ends_with_its_channel(receiver: OtlpReceiver) -> None:
    endless = Endless()
    async with probe("unary_stream", endless.stream, traced_client=True) as (call, channel):
        started = call(CHUNK, metadata=AUTHORIZED)
        await started.read()
        del started
        gc.collect()
        await channel.close()
        await asyncio.wait_for(endless.ended.wait(), 10)
    client, server = await client_and_server(receiver)
    assert client.attributes["rpc.status_code"] == "CANCELLED"
    assert server.attributes["rpc.status_code"] == "CANCELLED"


async def test_stopped_server_ends_its_spans(receiver: OtlpReceiver) -> None:
    endless = Endless()
    servers: list[grpc.aio.Server] = []
    serving = probe("unary_stream", endless.stream, traced_client=True, add=[servers.append])
    async with serving as (call, _):
        started = call(CHUNK, metadata=AUTHORIZED)
        await started.read()
        await servers[0].stop(0)
        # One that does not read what was sent before may never hear of the end.
        with pytest.raises(grpc.aio.AioRpcError):
            while await started.read() is not grpc.aio.EOF:
                pass
        await asyncio.wait_for(endless.ended.wait(), 10)
    _, server = await client_and_server(receiver)
    assert server.attributes["rpc.status_code"] == "CANCELLED"


VANISHING_CLIENT = """
import asyncio, sys, grpc

async def main():
    address, method, metadata = sys.argv[1], sys.argv[2], (("x-api-key", sys.argv[3]),)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream(method)(b"", metadata=metadata)
        await call.read()
        print("reading", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_vanished_client_ends_the_span(
    receiver: OtlpReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endless = Endless()
    socket = tmp_path / "s"
    async with probe("unary_stream", endless.stream, socket=socket):
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", VANISHING_CLIENT, f"unix:{socket}", f"/{METHOD}", KEY),
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        assert await asyncio.wait_for(client.stdout.readline(), 20) == b"reading\n"
        client.kill()
        await client.wait()
        await asyncio.wait_for(endless.ended.wait(), 10)
    (server,) = await asyncio.to_thread(receiver.wait_for, METHOD)
    assert code(server) == ("UNSET", "CANCELLED", "CANCELLED")
    assert not caplog.records


async def test_calls_at_once_keep_to_their_own_traces(receiver: OtlpReceiver) -> None:
    async def one(call: Any) -> str:
        with telemetry.tracer().start_as_current_span("work"):
            answers = [a async for a in call(BundleChunk(offset=5), metadata=AUTHORIZED)]
            assert len(answers) == 5
            return telemetry.current_trace_id()

    async with probe("unary_stream", count_down, traced_client=True) as (call, _):
        trace_ids = await asyncio.gather(*(one(call) for _ in range(10)))
    assert len(set(trace_ids)) == 10
    await asyncio.to_thread(receiver.wait_for, *["work"] * 10, *["step"] * 50, *[METHOD] * 20)
    for trace_id in trace_ids:
        names = [span.name for span in receiver.spans(trace_id)]
        assert sorted(names) == sorted(["work", METHOD, METHOD, *["step"] * 5])


async def test_foreign_context_is_taken_up_and_garbage_is_not(receiver: OtlpReceiver) -> None:
    trace_id, span_id = "ab" * 16, "cd" * 8
    async with probe("unary_unary", echo) as (call, _):
        for traceparent in (f"00-{trace_id}-{span_id}-00", "00-zz-1-01", "x" * 5000):
            await call(CHUNK, metadata=(*AUTHORIZED, ("traceparent", traceparent)))
    spans = await asyncio.to_thread(receiver.wait_for, METHOD, METHOD, METHOD)
    first, second, third = (span for span in spans if span.name == METHOD)
    assert (first.trace_id, first.parent_id) == (trace_id, span_id)
    assert second.parent_id == third.parent_id == ""


async def test_durations_are_exported(receiver: OtlpReceiver) -> None:
    async with probe("unary_unary", echo) as (call, _):
        await call(CHUNK, metadata=AUTHORIZED)
    for _ in range(100):
        if "rpc.server.call.duration" in receiver.metrics():
            break
        await asyncio.sleep(0.1)
    assert "rpc.server.call.duration" in receiver.metrics()


async def test_nothing_is_current_after_a_call(receiver: OtlpReceiver) -> None:
    async with probe("unary_unary", echo, traced_client=True) as (call, _):
        await call(CHUNK, metadata=AUTHORIZED)
    assert trace.get_current_span() is trace.INVALID_SPAN
