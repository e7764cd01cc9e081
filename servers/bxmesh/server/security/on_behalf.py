"""Doing something later, or by another hand, for an identity: with what it may then and may now."""

from __future__ import annotations

import time

from bxmesh.agent.v1.function_work_pb2 import OnBehalfOf
from bxmesh.client.mesh import AsyncMesh

from .identities import Identity
from .tokens import Tokens

__all__ = ["Deputy", "caller_of"]

_MARGIN_SECONDS = 30.0


def caller_of(identity: Identity) -> OnBehalfOf:
    """Returns what must be kept of a caller to act for it later."""
    return OnBehalfOf(
        identity_id=identity.id,
        credential=identity.credential,
        permissions=sorted(identity.permissions),
    )


class Deputy:
    """Calls the mesh for callers, as they could themselves: every call passes the same guard."""

    def __init__(self, tokens: Tokens, address: str) -> None:
        """Takes the address at which this server is reached from inside."""
        self._tokens = tokens
        self._address = address

    async def mesh(self, caller: OnBehalfOf, seconds: float) -> AsyncMesh:
        """Returns a connection, to be closed, that is a caller's for some time; what the caller may
        no longer do, or never could, its calls refuse."""
        identity = Identity(
            caller.identity_id,
            "",
            frozenset(caller.permissions),
            credential=caller.credential,
        )
        issued = await self._tokens.issue(
            identity,
            identity.permissions,
            "",
            int(time.time() + seconds + _MARGIN_SECONDS),
        )
        return AsyncMesh(self._address, api_key=issued.token, tls=False)
