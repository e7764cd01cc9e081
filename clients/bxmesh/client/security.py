"""The security service, in the messages of its contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from bxmesh.client.connection import Connection, translated
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub

__all__ = ["AsyncSecurity"]


class AsyncSecurity:
    """Identities, roles, keys, tokens, policies, violations and the audit log.

    A request finds its RPC by its type: `call(GetIdentityRequest())` calls GetIdentity.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub: Any = SecurityServiceStub(connection.channel)

    async def call(self, request: Message) -> Any:
        """Returns the answer to a request of the contract.

        It may be sent twice while the mesh is unavailable: give mutations a request_id.
        """
        return await self._connection.unary(self._method(request), request)

    async def stream(self, request: Message) -> AsyncIterator[Any]:
        """Yields the answers to a request whose RPC streams, until it ends or is closed."""
        call = self._method(request)(request, metadata=self._connection.metadata)
        try:
            with translated():
                async for answer in call:
                    yield answer
        finally:
            call.cancel()

    def _method(self, request: Message) -> Any:
        return getattr(self._stub, type(request).__name__.removesuffix("Request"))
