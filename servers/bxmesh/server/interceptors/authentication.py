"""Who calls, and whether they may: at the start of a call, and as long as it is open."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from bxmesh.security.v1.violation_pb2 import Severity, ViolationKind

from ..errors import MeshError, permission_denied, unauthenticated
from ..open_streams import EndableBlock
from ..security.events import IGNORED, SecurityEvents, ViolationEvent
from ..security.identities import EVERYTHING, Identity
from ..security.permissions import OPEN_SERVICES, known_method
from ._wrap import Call, Interceptor, Proceed

__all__ = [
    "AuthenticationInterceptor",
    "Authenticator",
    "Authorizer",
    "CertificateAuthenticator",
    "admins_only",
    "current_identity",
]

_log = logging.getLogger(__name__)

_LONGEST_CREDENTIAL = 4096
_LOOK_SECONDS = 1.0

Authorizer = Callable[[Identity, str], tuple[str, ...]]
"""Returns what a full method, /package.Service/Method, asks for, or raises MeshError
PERMISSION_DENIED."""

Counter = Callable[[Identity | None, tuple[str, ...], bool], None]
"""Is told of each call: of whom, by which permissions, and whether it was refused."""


class Authenticator(Protocol):
    """Finds out whose credential one is."""

    async def authenticate(self, credential: str) -> Identity | None:
        """Returns whose credential it is, None for none that it knows.

        Raises MeshError UNAUTHENTICATED for one that it knows and does not accept.
        """

    def renew(self, identity: Identity) -> Identity | None:
        """Returns an identity that it found as it stands now, None when it is not accepted now."""


class CertificateAuthenticator(Protocol):
    """Finds out whose client certificate one is."""

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
        """Returns whose certificate is in the context of a transport, None for nobody's."""

    def renew(self, identity: Identity) -> Identity | None:
        """Returns an identity that it found as it stands now, None when it is not accepted now."""


def admins_only(identity: Identity, method: str) -> tuple[str, ...]:
    """Lets those call who may do everything."""
    if EVERYTHING not in identity.permissions:
        raise permission_denied(f"{identity.id} may not call {method}.")
    return ()


class _Caller:
    """Who makes a call that is open."""

    __slots__ = ("block", "identity", "method", "source")

    def __init__(
        self,
        identity: Identity,
        source: Authenticator | CertificateAuthenticator,
        method: str,
        block: EndableBlock,
    ) -> None:
        self.identity = identity
        self.source = source
        self.method = method
        self.block = block


_caller: ContextVar[_Caller] = ContextVar("bxmesh_caller")


def current_identity() -> Identity:
    """Returns who makes the call that is being served, with what it may do by now.

    Raises LookupError in an open method and outside of calls.
    """
    return _caller.get().identity


class AuthenticationInterceptor(Interceptor):
    """Refuses every call without a valid credential and a permission; health and reflection are open.

    A key or token comes in the metadata, as `authorization: Bearer KEY` or `x-api-key: KEY`; the
    first authenticator that knows it wins. Without one, the client certificate counts.
    """

    def __init__(
        self,
        authenticators: Sequence[Authenticator],
        authorizer: Authorizer = admins_only,
        *,
        certificates: CertificateAuthenticator | None = None,
        events: SecurityEvents = IGNORED,
        count: Counter = lambda identity, permissions, refused: None,
        address_of: Callable[[str], str] = lambda peer: peer,
    ) -> None:
        """Takes who is told of violations and of calls, and how a peer's address is written."""
        self._authenticators = tuple(authenticators)
        self._authorize = authorizer
        self._certificates = certificates
        self._events = events
        self._count = count
        self._address_of = address_of
        self._open: set[_Caller] = set()
        self._changed = asyncio.Event()

    async def around(self, call: Call, proceed: Proceed) -> Any:
        """Lets the call through for a known identity that may make it, as long as it may."""
        if call.method.split("/")[1] in OPEN_SERVICES:
            return await proceed()
        source, identity = await self._authenticate(call)
        try:
            permissions = self._authorize(identity, call.method)
        except MeshError as error:
            self._count(identity, (), True)
            self._tell(ViolationKind.VIOLATION_KIND_AUTHORIZATION, call, error, identity.id)
            raise
        self._count(identity, permissions, False)
        with EndableBlock() as block:
            caller = _Caller(identity, source, call.method, block)
            _caller.set(caller)
            if not call.streams:
                # It ends by itself, and may be what ends its own key.
                return await proceed()
            self._open.add(caller)
            try:
                return await proceed()
            finally:
                self._open.discard(caller)

    async def _authenticate(
        self, call: Call
    ) -> tuple[Authenticator | CertificateAuthenticator, Identity]:
        try:
            credential = _credential(call)
            if credential is not None:
                return await self._find(credential)
            if self._certificates is not None:
                identity = self._certificates.identify(call.context.auth_context())
                if identity is not None:
                    return self._certificates, identity
            raise unauthenticated(
                "This call carries no key; send one as 'authorization: Bearer KEY'.",
                reason="KEY_MISSING",
            )
        except MeshError as error:
            self._count(None, (), True)
            if error.reason != "REDIS_UNAVAILABLE":
                self._tell(ViolationKind.VIOLATION_KIND_AUTHENTICATION, call, error, "")
            raise

    async def _find(self, credential: str) -> tuple[Authenticator, Identity]:
        if len(credential) <= _LONGEST_CREDENTIAL:
            for authenticator in self._authenticators:
                identity = await authenticator.authenticate(credential)
                if identity is not None:
                    return authenticator, identity
        raise unauthenticated("The key of this call is not valid here.", reason="KEY_INVALID")

    def _tell(
        self, kind: ViolationKind.ValueType, call: Call, error: MeshError, identity_id: str
    ) -> None:
        self._events.violation(
            ViolationEvent(
                kind,
                Severity.SEVERITY_MEDIUM,
                rule=error.reason,
                message=error.message,
                identity_id=identity_id,
                address=self._address_of(call.context.peer()),
                action=known_method(call.method),
            )
        )

    def look(self) -> None:
        """Has `watch` look at all open streams, because somebody's rights have changed."""
        self._changed.set()

    async def watch(self) -> None:
        """Ends open streams whose callers may hold them no longer, until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                now = time.time()
                due = [caller for caller in self._open if caller.identity.expires <= now]
            else:
                self._changed.clear()
                due = list(self._open)
            for caller in due:
                try:
                    self._renew(caller)
                except Exception:
                    # Those of others are looked at nevertheless.
                    _log.exception("whether %s may go on is not known", caller.identity.id)

    def _renew(self, caller: _Caller) -> None:
        identity = caller.source.renew(caller.identity)
        if identity is None or identity.expires <= time.time():
            caller.block.end(
                unauthenticated(
                    "The credential of this call was revoked or has expired.", reason="KEY_ENDED"
                )
            )
            return
        caller.identity = identity
        try:
            self._authorize(identity, caller.method)
        except MeshError as error:
            caller.block.end(error)


def _credential(call: Call) -> str | None:
    metadata = dict(call.metadata)
    authorization = metadata.get("authorization")
    if isinstance(authorization, str):
        scheme, _, credential = authorization.partition(" ")
        return credential.strip() if scheme.lower() == "bearer" else None
    key = metadata.get("x-api-key")
    return key if isinstance(key, str) else None
