"""Servers that keep an activity log, and its lines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from bxmesh.agent.v1 import agent_service_pb2
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.registry.v1 import registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.server.activity import recording
from bxmesh.server.activity.files import read_lines
from bxmesh.server.agent.service import agent_service
from bxmesh.server.interceptors import AuthenticationInterceptor, server_interceptors
from bxmesh.server.registry.service import RegistryService
from bxmesh.server.settings import Settings
from bxmesh.server.streams import connect
from bxmesh.server.tasks.running import running_tasks
from bxmesh.server.unimplemented import offer
from tests.agent.mesh import Mesh
from tests.processes import until
from tests.registry.mesh import Names, anybody

Line = dict[str, Any]


@asynccontextmanager
async def logged(redis_url: str, directory: Path, **settings: Any) -> AsyncIterator[Mesh]:
    """A server with registry and agent service, put together as the real one is."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bx-")))
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        chosen = Settings(state_dir=folder, activity_log=directory, **settings)
        activity = await stack.enter_async_context(recording(chosen, redis))
        address = f"unix:{folder / 'server.sock'}"
        server = grpc.aio.server(
            interceptors=server_interceptors(
                AuthenticationInterceptor([Names()], anybody), activity
            ),
            options=[("grpc.so_reuseport", 0)],
        )
        registry = await stack.enter_async_context(RegistryService(redis))
        tasks = await stack.enter_async_context(running_tasks(chosen, redis))
        service = await stack.enter_async_context(
            agent_service(chosen, redis, tasks, activity=activity)
        )
        offer(server, registry_service_pb2, registry)
        offer(server, agent_service_pb2, service)
        server.add_insecure_port(address)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Mesh(
            service, server, redis, AgentServiceStub(channel), RegistryServiceStub(channel), address
        )


def lines(directory: Path, kind: str, **wanted: Any) -> list[Line]:
    """What the log of a kind says with these values, of all days and processes, in order of time."""
    found = [line for path in directory.glob(f"{kind}-*.jsonl") for line in read_lines(path)]
    found.sort(key=lambda line: line["time"])
    return [
        line for line in found if all(line.get(name) == value for name, value in wanted.items())
    ]


def events(directory: Path, kind: str, **wanted: Any) -> list[str]:
    """What happened, by the same."""
    return [line["event"] for line in lines(directory, kind, **wanted)]


async def logs(directory: Path, kind: str, count: int = 1, **wanted: Any) -> list[Line]:
    """Waits until so many lines are there."""
    await until(lambda: len(lines(directory, kind, **wanted)) >= count)
    return lines(directory, kind, **wanted)
