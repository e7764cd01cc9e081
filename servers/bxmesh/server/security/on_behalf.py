"""Doing something later, or by another hand, for an identity: with what it may then and may now."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from bxmesh.agent.v1.function_work_pb2 import OnBehalfOf
from bxmesh.client.mesh import AsyncMesh
from bxmesh.client.tracing import tracing_interceptors

from .identities import Identity
from .tokens import Tokens

__all__ = ["Deputy", "Metadata", "caller_of", "deputy"]

Metadata = tuple[tuple[str, str], ...]

_MARGIN_SECONDS = 30.0


def caller_of(identity: Identity) -> OnBehalfOf:
    """Returns what must be kept of a caller to act for it later."""
    caller = OnBehalfOf(
        identity_id=identity.id,
        credential=identity.credentials,
        permissions=sorted(identity.permissions),
        born=identity.born,
    )
    if math.isfinite(identity.expires):
        caller.expire_time.FromMicroseconds(int(identity.expires * 1e6))
    return caller


class Deputy:
    """Calls the mesh for callers, as they could themselves: every call passes the same guard."""

    def __init__(self, tokens: Tokens, address: str, channel: grpc.aio.Channel) -> None:
        self._tokens = tokens
        self._address = address
        self.channel = channel
        """To this server, from inside."""

    async def metadata(self, caller: OnBehalfOf, seconds: float) -> Metadata:
        """Returns the metadata of calls that are a caller's for some time, at most until its
        credential ends; what the caller may no longer do, or never could, they are refused, and
        everything when the caller is another by now."""
        return (("authorization", f"Bearer {await self._token(caller, seconds)}"),)

    async def mesh(self, caller: OnBehalfOf, seconds: float) -> AsyncMesh:
        """Returns a client, to be closed, that is a caller's likewise."""
        return AsyncMesh(self._address, api_key=await self._token(caller, seconds), tls=False)

    async def _token(self, caller: OnBehalfOf, seconds: float) -> str:
        identity = Identity(
            caller.identity_id,
            "",
            frozenset(caller.permissions),
            credential=caller.credential,
            born=caller.born,
        )
        expires = time.time() + seconds + _MARGIN_SECONDS
        if caller.HasField("expire_time"):
            expires = min(expires, caller.expire_time.ToMicroseconds() / 1e6)
        return (await self._tokens.issue(identity, identity.permissions, "", int(expires))).token


@asynccontextmanager
async def deputy(tokens: Tokens, address: str) -> AsyncIterator[Deputy]:
    """Keeps the way to this server from inside within a block."""
    async with grpc.aio.insecure_channel(
        address,
        interceptors=tracing_interceptors(),
        options=[("grpc.use_local_subchannel_pool", 1)],
    ) as channel:
        yield Deputy(tokens, address, channel)
