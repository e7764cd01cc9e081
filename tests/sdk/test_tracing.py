"""One trace, from who sends a message through the agent that handles it, and on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import trace

from bxmesh.client import AsyncMesh, Message, on
from bxmesh.client.agents import DeliveryMode
from bxmesh.server import telemetry
from tests.sdk.agents import AT_ONCE, Recorder, name, soon
from tests.tracing.otlp import OtlpReceiver, ReceivedSpan, otlp

__all__ = ["otlp"]


class Relay(Recorder):
    """Passes on what it gets, at the second attempt."""

    @on("relay", retry=AT_ONCE)
    async def relay(self, message: Message) -> None:
        if message.delivery_mode == "durable" and message.attempt == 1:
            raise ArithmeticError("not yet")
        await self.send(message.payload, "relayed", mode=message.delivery_mode)


@pytest.fixture
def receiver(otlp: OtlpReceiver) -> Iterator[OtlpReceiver]:
    configured = telemetry.configure("test")
    yield otlp
    configured.shutdown()


def own(spans: list[ReceivedSpan], what: str) -> list[ReceivedSpan]:
    """The spans of this process by name."""
    return [s for s in spans if s.name == what and s.resource["service.name"] == "bxmesh-test"]


@pytest.mark.parametrize("mode", ["durable", "direct"])
async def test_a_message_continues_its_senders_trace(
    receiver: OtlpReceiver, mesh: AsyncMesh, mode: DeliveryMode
) -> None:
    attempts = 2 if mode == "durable" else 1
    async with Relay(name("relay")).running(mesh) as bob, Recorder().running(mesh) as alice:
        with trace.get_tracer("test").start_as_current_span("all of it") as root:
            await alice.send(bob.agent_id, "relay", alice.agent_id, mode=mode)
        assert (await alice.next()).type == "relayed"
    wanted = ["send relay", "send relayed", "process relayed", *["process relay"] * attempts]
    everything = await soon(asyncio.to_thread(receiver.wait_for, *wanted))
    trace_id = f"{root.get_span_context().trace_id:032x}"
    spans = [span for span in everything if span.trace_id == trace_id]
    (sent,) = own(spans, "send relay")
    assert sent.kind == "PRODUCER"
    assert sent.attributes["messaging.destination.name"] == bob.agent_id
    tries = own(spans, "process relay")
    assert [span.kind for span in tries] == ["CONSUMER"] * attempts
    assert {span.parent_id for span in tries} == {sent.span_id}
    assert [span.status for span in tries] == ["ERROR", "UNSET"][-attempts:]
    assert tries[-1].attributes["bxmesh.attempt"] == attempts
    if mode == "durable":
        assert tries[0].events == ("exception",)
        assert tries[-1].links
    (passed_on,) = own(spans, "send relayed")
    assert passed_on.parent_id == tries[-1].span_id
    (received,) = own(spans, "process relayed")
    assert received.parent_id == passed_on.span_id
