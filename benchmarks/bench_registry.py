"""What the heartbeats of many agents cost a server."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.figures import Figure
from benchmarks.processor import processor_share
from bxmesh.registry.v1 import agent_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.server.embedded import EmbeddedMesh

AGENTS = 1_000
HEARTBEAT_SECONDS = 10.0
MEASURED_SECONDS = 20.0
_CHANNELS = 10


def run() -> list[Figure]:
    return [asyncio.run(_heartbeats())]


async def _heartbeats() -> Figure:
    """Each agent on a stream of its own, as agents in processes of their own would be."""
    with EmbeddedMesh(workers=0) as mesh:
        key = (mesh.state_dir / "admin.key").read_text().strip()
        metadata = (("authorization", f"Bearer {key}"),)
        async with AsyncExitStack() as stack:
            stubs: list[Any] = [
                RegistryServiceStub(
                    await stack.enter_async_context(
                        grpc.aio.insecure_channel(
                            mesh.address, options=[("grpc.use_local_subchannel_pool", 1)]
                        )
                    )
                )
                for _ in range(_CHANNELS)
            ]
            idle = await processor_share(mesh.pid, 5.0)
            async with asyncio.TaskGroup() as group:
                agents = [
                    group.create_task(_agent(number, stubs[number % _CHANNELS], metadata))
                    for number in range(AGENTS)
                ]
                await asyncio.sleep(HEARTBEAT_SECONDS)
                share = await processor_share(mesh.pid, MEASURED_SECONDS)
                for agent in agents:
                    agent.cancel()
    return Figure(
        f"{AGENTS:,} agents with a heartbeat every {HEARTBEAT_SECONDS:.0f} s, server and Valkey",
        100 * share,
        "% of a core",
        at_most=20,
        details=f"{100 * idle:.1f} % without any agent",
    )


async def _agent(number: int, stub: Any, metadata: Any) -> None:
    lease = await stub.RegisterAgent(
        agent_pb2.RegisterAgentRequest(
            agent_id=f"bench-{number}",
            agent_type="bench",
            capabilities=[agent_pb2.Capability(name=f"bench.c{number % 20}")],
            lease_ttl_seconds=30,
        ),
        metadata=metadata,
    )
    beats = stub.KeepAlive(metadata=metadata)
    try:
        # They do not beat all at once.
        due = time.monotonic() + HEARTBEAT_SECONDS * number / AGENTS
        load = 0.0
        while True:
            await asyncio.sleep(due - time.monotonic())
            due += HEARTBEAT_SECONDS
            load = (load + 0.1) % 1.0
            await beats.write(
                agent_pb2.KeepAliveRequest(lease_id=lease.lease_id, current_load=load)
            )
            await beats.read()
    finally:
        beats.cancel()
