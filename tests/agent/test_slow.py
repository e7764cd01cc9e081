"""Agents that read slowly, or not at all, cost the server little memory."""

from __future__ import annotations

import asyncio
from typing import Any

from bxmesh.agent.v1 import delivery_pb2, message_pb2
from tests.agent.mesh import ALICE, Mesh

PAYLOAD = '"' + "x" * 100_000 + '"'
MESSAGES = 400


async def _connected_but_deaf(mesh: Mesh) -> Any:
    """A connection with much credit whose deliveries nobody reads."""
    lease = await mesh.register("deaf")
    call = mesh.stub.Connect(metadata=ALICE)
    hello = delivery_pb2.Hello(agent_id="deaf", lease_id=lease, initial_credit=10_000)
    await call.write(delivery_pb2.ConnectRequest(hello=hello))
    await call.read()
    return call


async def test_durable_messages_wait_in_the_mailbox(mesh: Mesh) -> None:
    call = await _connected_but_deaf(mesh)
    try:
        for _ in range(0, MESSAGES, 20):
            await asyncio.gather(*[mesh.send(recipient="deaf", json=PAYLOAD) for _ in range(20)])
        (connection,) = mesh.service.mesh.connections.of("deaf")
        assert await mesh.redis.xlen("bxmesh:{work:agents}:inbox:deaf:2") == MESSAGES
        # What was taken is what gRPC has room for, and one page.
        assert len(connection._held) < 150
        # Nothing is lost on somebody who reads late.
        got = set()
        while len(got) < MESSAGES:
            async with asyncio.timeout(20):
                response = await call.read()
            got.add(response.delivery.envelope.message_id)
    finally:
        call.cancel()


async def test_direct_messages_are_dropped(mesh: Mesh) -> None:
    call = await _connected_but_deaf(mesh)
    try:
        for _ in range(0, MESSAGES, 20):
            await asyncio.gather(
                *[
                    mesh.send(
                        recipient="deaf",
                        json=PAYLOAD,
                        delivery_mode=message_pb2.DELIVERY_MODE_DIRECT,
                    )
                    for _ in range(20)
                ]
            )
        (connection,) = mesh.service.mesh.connections.of("deaf")
        assert connection._direct_bytes <= 8 << 20
        assert connection._direct.qsize() <= 256
        # The connection is as good as ever.
        response = await call.read()
        assert response.delivery.envelope.payload.json.json == PAYLOAD
    finally:
        call.cancel()
