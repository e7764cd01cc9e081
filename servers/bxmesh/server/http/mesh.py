"""The mesh behind the gateway, called with the credentials of whoever calls the gateway."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bxmesh.agent.v1.conversation_service_pb2_grpc import ConversationServiceStub
from bxmesh.client.connection import Connection, Timeouts, translated
from bxmesh.client.endpoint import Endpoint
from bxmesh.client.errors import BxmeshError, Unauthenticated
from bxmesh.health.v1.health_service_pb2_grpc import HealthServiceStub

__all__ = ["Caller", "MeshLink", "bearer_of"]

_CREDENTIAL = re.compile(r"[\x21-\x7e]{1,4096}")
_RETRIES = 1
_HEALTH_SECONDS = 3.0

T = TypeVar("T")


class MeshLink:
    """One channel to the mesh, which carries no rights of its own."""

    def __init__(self, endpoint: Endpoint, request_timeout: float) -> None:
        timeouts = Timeouts(
            calculation=request_timeout, transfer=request_timeout, unary=min(30.0, request_timeout)
        )
        self._connection = Connection(
            Endpoint(endpoint.address, "", endpoint.credentials), timeouts, _RETRIES
        )
        # The generated stubs have no types for asyncio.
        self.conversations: Any = ConversationServiceStub(self._connection.channel)
        self.health: Any = HealthServiceStub(self._connection.channel)
        self._serving: Any = health_pb2_grpc.HealthStub(self._connection.channel)

    @property
    def address(self) -> str:
        """Where the mesh is."""
        return self._connection.endpoint.address

    def caller(self, credential: str) -> Caller:
        """Returns the mesh as whoever has a key or token sees it."""
        connection = copy.copy(self._connection)
        connection.metadata = (("authorization", f"Bearer {credential}"),)
        return Caller(connection, self)

    async def serves(self) -> bool:
        """Whether the mesh is there and says that it serves."""
        try:
            with translated():
                answer = await self._serving.Check(
                    health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS
                )
        except BxmeshError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self._connection.close()


@dataclass(frozen=True)
class Caller:
    """The mesh as one caller sees it."""

    connection: Connection
    """The channel, with the caller's credential on every call."""
    link: MeshLink
    """Where the stubs are."""

    async def unary(
        self, method: Callable[..., Awaitable[T]], request: Any, seconds: float | None = None
    ) -> T:
        """Returns the answer to an idempotent call."""
        return await self.connection.unary(method, request, seconds)

    @asynccontextmanager
    async def stream(
        self,
        method: Callable[..., Any],
        request: Any,
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """Gives the answers of a streaming call, which ends with the block."""
        call = method(request, metadata=self.connection.metadata)
        try:
            yield _answers(call)
        finally:
            call.cancel()


async def _answers(call: Any) -> AsyncIterator[Any]:
    with translated():
        async for answer in call:
            yield answer


def bearer_of(authorization: str | None, api_key: str | None = None) -> str:
    """Returns the key or token of a request. Raises Unauthenticated without a fit one."""
    credential = api_key or ""
    if authorization is not None:
        scheme, _, credential = authorization.strip().partition(" ")
        if scheme.lower() != "bearer":
            credential = ""
    credential = credential.strip()
    if not credential:
        raise _unauthenticated(
            "KEY_MISSING", "This request carries no key; send one as 'Authorization: Bearer KEY'."
        )
    if not _CREDENTIAL.fullmatch(credential):
        raise _unauthenticated("KEY_INVALID", "The key of this request is not valid here.")
    return credential


def _unauthenticated(reason: str, message: str) -> Unauthenticated:
    return Unauthenticated(message, code=grpc.StatusCode.UNAUTHENTICATED, reason=reason)
