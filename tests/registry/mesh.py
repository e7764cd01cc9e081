"""A registry server on a unix socket, and its callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from bxmesh.client.errors import BxmeshError, from_rpc_error
from bxmesh.registry.v1 import agent_pb2, registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.server.interceptors import AuthenticationInterceptor, server_interceptors
from bxmesh.server.registry.service import RegistryService
from bxmesh.server.security.identities import EVERYTHING, Identity
from bxmesh.server.security.permissions import PERMISSIONS
from bxmesh.server.unimplemented import offer

_USUAL = frozenset(PERMISSIONS) - {"mesh_operate", "registry_write", "security_admin"}


_SPECIAL = {
    "admin": frozenset({EVERYTHING}),
    "operator": frozenset({"mesh_operate", "queue_write"}),
    "nobody": frozenset({"agent_register"}),
}


class Names:
    """Takes a key for the caller's name; `admin` may do everything, others all but administer.

    alice@blue is alice, of the team blue.
    """

    async def authenticate(self, credential: str) -> Identity | None:
        permissions = _SPECIAL.get(credential, _USUAL)
        name, _, team = credential.partition("@")
        return Identity(name, "agent", permissions, team=team)

    def renew(self, identity: Identity) -> Identity | None:
        return identity


def anybody(identity: Identity, method: str) -> tuple[str, ...]:
    return ()


ALICE = (("x-api-key", "alice"),)
BOB = (("x-api-key", "bob"),)
ADMIN = (("x-api-key", "admin"),)
OPERATOR = (("x-api-key", "operator"),)


@dataclass
class Mesh:
    """A running registry; its service, and a stub for it."""

    service: RegistryService
    server: grpc.aio.Server
    stub: Any


@asynccontextmanager
async def registry(redis: Redis, **options: Any) -> AsyncIterator[Mesh]:
    with TemporaryDirectory(prefix="bx-") as folder:
        address = f"unix:{Path(folder) / 'registry.sock'}"
        server = grpc.aio.server(
            interceptors=server_interceptors(AuthenticationInterceptor([Names()], anybody)),
            options=[("grpc.so_reuseport", 0)],
        )
        async with RegistryService(redis, **options) as service:
            offer(server, registry_service_pb2, service)
            server.add_insecure_port(address)
            await server.start()
            try:
                async with grpc.aio.insecure_channel(address) as channel:
                    yield Mesh(service, server, RegistryServiceStub(channel))
            finally:
                await server.stop(0)


def registration(
    agent_id: str, *capabilities: str, **fields: Any
) -> agent_pb2.RegisterAgentRequest:
    return agent_pb2.RegisterAgentRequest(
        agent_id=agent_id,
        agent_type=fields.pop("agent_type", "test.agent"),
        capabilities=[agent_pb2.Capability(name=name) for name in capabilities],
        **fields,
    )


@contextmanager
def refused(code: str, reason: str) -> Iterator[list[BxmeshError]]:
    """Expects a call to fail; the list holds the error afterwards."""
    errors: list[BxmeshError] = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        yield errors
    errors.append(from_rpc_error(raised.value))
    assert (raised.value.code().name, errors[0].reason) == (code, reason), errors[0]
