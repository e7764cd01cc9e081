"""Servers with their guard on unix sockets, all on one Redis, and callers with keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from redis.asyncio import Redis

from bxmesh.client.errors import BxmeshError, from_rpc_error
from bxmesh.registry.v1 import registry_service_pb2
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from bxmesh.security.v1 import credential_pb2, identity_pb2, security_service_pb2
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.registry.service import RegistryService
from bxmesh.server.security.guard import Guard, guard
from bxmesh.server.security.service import SecurityService
from bxmesh.server.settings import Settings
from bxmesh.server.unimplemented import offer

ADMIN_KEY = "bx_admin_" + "k" * 43

Metadata = tuple[tuple[str, str], ...]


def bearer(secret: str) -> Metadata:
    """Returns the metadata of a call with a key or token."""
    return (("authorization", f"Bearer {secret}"),)


ADMIN = bearer(ADMIN_KEY)


@dataclass
class Server:
    """A running server with its guard, and stubs for it."""

    guard: Guard
    address: str
    security: Any
    registry: Any

    async def identity(
        self, identity_id: str, *permissions: str, roles: Sequence[str] = (), **fields: Any
    ) -> Metadata:
        """Creates an identity with a key; returns the metadata of its calls."""
        await self.security.CreateIdentity(
            identity_pb2.CreateIdentityRequest(
                identity=identity_pb2.Identity(
                    identity_id=identity_id,
                    kind=identity_pb2.IDENTITY_KIND_USER,
                    permissions=permissions,
                    roles=roles,
                    **fields,
                )
            ),
            metadata=ADMIN,
        )
        return (await self.key(identity_id))[1]

    async def key(
        self, identity_id: str, metadata: Metadata = ADMIN, **fields: Any
    ) -> tuple[credential_pb2.ApiKey, Metadata]:
        """Creates a key; returns it and the metadata of its calls."""
        answer = await self.security.CreateApiKey(
            credential_pb2.CreateApiKeyRequest(identity_id=identity_id, **fields),
            metadata=metadata,
        )
        return answer.api_key, bearer(answer.secret)


@asynccontextmanager
async def serving(redis: Redis, folder: str | Path | None = None) -> AsyncIterator[Server]:
    """Serves the security service and the registry; servers of one folder are one mesh."""
    with TemporaryDirectory(prefix="bx-") as own:
        settings = Settings(state_dir=Path(folder or own))
        settings.prepare_directories()
        async with (
            guard(settings, redis, ADMIN_KEY) as secured,
            RegistryService(redis) as registry,
        ):
            server = grpc.aio.server(
                interceptors=secured.interceptors(),
                options=[("grpc.so_reuseport", 0)],
            )
            offer(server, security_service_pb2, SecurityService(secured.mesh))
            offer(server, registry_service_pb2, registry)
            address = f"unix:{Path(own) / 'socket'}"
            server.add_insecure_port(address)
            await server.start()
            options = [("grpc.use_local_subchannel_pool", 1)]
            try:
                async with grpc.aio.insecure_channel(address, options=options) as channel:
                    yield Server(
                        secured,
                        address,
                        SecurityServiceStub(channel),
                        RegistryServiceStub(channel),
                    )
            finally:
                registry.drain()
                await server.stop(0.5)


async def refused(call: Any) -> BxmeshError:
    """Returns the error of a call that must fail."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call was not refused")
