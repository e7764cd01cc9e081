"""A registry server on a unix socket, with two callers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from bxmesh.client.errors import MeshError, from_rpc_error
from bxmesh.registry.v1 import agent_pb2, registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub, RegistryServiceStub
from bxmesh.server.interceptors import server_interceptors
from bxmesh.server.registry.service import RegistryService
from bxmesh.server.security.identities import EVERYTHING, Identity
from bxmesh.server.unimplemented import offer


class Names:
    """Takes a key for the caller's name; `admin` may do everything."""

    async def authenticate(self, credential: str) -> Identity | None:
        permissions = frozenset({EVERYTHING} if credential == "admin" else ())
        return Identity(credential, "agent", permissions)


class Anybody:
    async def may_call(self, identity: Identity, method: str) -> bool:
        return True


@dataclass
class Mesh:
    service: RegistryService
    server: grpc.aio.Server
    address: str

    @asynccontextmanager
    async def caller(self, name: str) -> AsyncIterator[RegistryServiceAsyncStub]:
        async with grpc.aio.insecure_channel(
            self.address, interceptors=_with_key(name)
        ) as channel:
            yield RegistryServiceStub(channel)


@asynccontextmanager
async def registry(redis: Redis, **options: Any) -> AsyncIterator[Mesh]:
    with TemporaryDirectory(prefix="bx-") as folder:
        address = f"unix:{Path(folder) / 'registry.sock'}"
        server = grpc.aio.server(
            interceptors=server_interceptors([Names()], Anybody()),
            options=[("grpc.so_reuseport", 0)],
        )
        async with RegistryService(redis, **options) as service:
            offer(server, registry_service_pb2, service)
            server.add_insecure_port(address)
            await server.start()
            try:
                yield Mesh(service, server, address)
            finally:
                await server.stop(0)


def registration(agent_id: str, *capabilities: str, **fields: Any) -> agent_pb2.RegisterAgentRequest:
    return agent_pb2.RegisterAgentRequest(
        agent_id=agent_id,
        agent_type=fields.pop("agent_type", "test.agent"),
        capabilities=[agent_pb2.Capability(name=name) for name in capabilities],
        **fields,
    )


@asynccontextmanager
async def refused(code: str, reason: str) -> AsyncIterator[MeshError]:
    """Expects a call to fail; yields nothing of use before it has."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        yield MeshError  # type: ignore[misc]
    error = from_rpc_error(raised.value)
    assert (raised.value.code().name, error.reason) == (code, reason), error
