"""Who calls, and whether they may."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from ..errors import permission_denied, unauthenticated
from ..security.identities import EVERYTHING, Identity
from ._wrap import Call, Interceptor, Proceed

__all__ = [
    "AdminsOnly",
    "AuthenticationInterceptor",
    "Authenticator",
    "Authorizer",
    "current_identity",
]

_OPEN_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
_LONGEST_CREDENTIAL = 4096

_identity: ContextVar[Identity] = ContextVar("bxmesh_identity")


class Authenticator(Protocol):
    """Finds out whose credential one is."""

    async def authenticate(self, credential: str) -> Identity | None:
        """Returns whose credential it is, None for nobody's that it knows."""


class Authorizer(Protocol):
    """Decides who may call what."""

    async def may_call(self, identity: Identity, method: str) -> bool:
        """Returns whether the identity may call the full method, /package.Service/Method."""


class AdminsOnly:
    """Lets those call who may do everything."""

    async def may_call(self, identity: Identity, method: str) -> bool:
        """Returns whether the identity may do everything."""
        return EVERYTHING in identity.permissions


def current_identity() -> Identity:
    """Returns who makes the call that is being served.

    Raises LookupError in an open method and outside of calls.
    """
    return _identity.get()


class AuthenticationInterceptor(Interceptor):
    """Refuses every call without a valid key and a permission; health and reflection are open.

    The key comes in the metadata, as `authorization: Bearer KEY` or `x-api-key: KEY`. The first
    authenticator that knows it wins.
    """

    def __init__(self, authenticators: Sequence[Authenticator], authorizer: Authorizer) -> None:
        self._authenticators = tuple(authenticators)
        self._authorizer = authorizer

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Lets the call through for a known identity that may make it."""
        if call.method.split("/")[1] not in _OPEN_SERVICES:
            identity = await self._authenticate(call)
            if not await self._authorizer.may_call(identity, call.method):
                raise permission_denied(f"{identity.id} may not call {call.method}.")
            _identity.set(identity)
        return await proceed()

    async def _authenticate(self, call: Call) -> Identity:
        credential = _credential(call)
        if credential is None:
            raise unauthenticated(
                "This call carries no key; send one as 'authorization: Bearer KEY'.",
                reason="KEY_MISSING",
            )
        if len(credential) <= _LONGEST_CREDENTIAL:
            for authenticator in self._authenticators:
                identity = await authenticator.authenticate(credential)
                if identity is not None:
                    return identity
        raise unauthenticated("The key of this call is not valid here.", reason="KEY_INVALID")


def _credential(call: Call) -> str | None:
    metadata = dict(call.metadata)
    authorization = metadata.get("authorization")
    if isinstance(authorization, str):
        scheme, _, credential = authorization.partition(" ")
        return credential.strip() if scheme.lower() == "bearer" else None
    key = metadata.get("x-api-key")
    return key if isinstance(key, str) else None
