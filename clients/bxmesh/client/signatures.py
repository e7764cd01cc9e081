"""Signing the messages that a mesh connection sends, and verifying those that come."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import grpc

from bxmesh.agent.v1.message_pb2 import Envelope, Signature
from bxmesh.client.errors import NotFound, PermissionDenied
from bxmesh.client.names import invalid
from bxmesh.registry.v1.agent_pb2 import GetAgentRequest
from bxmesh.security.v1.identity_pb2 import (
    GetIdentityRequest,
    ListMessageKeysRequest,
    MessageKey,
)
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub

if TYPE_CHECKING:
    from bxmesh.client.connection import Connection
    from bxmesh.signing import SigningKey

__all__ = ["SignatureMode", "SignatureRefused", "Signatures", "Signed", "signing_key"]

SignatureMode = Literal["ignore", "accept", "require"]
"""Of messages that come: not looked at; a signature must be good; there must be one."""

_log = logging.getLogger(__name__)

_MOST_SENDERS = 10_000
# So long the keys of a sender are not asked for again; for a key that is not among them, shorter.
_FRESH_SECONDS = 60.0
_AGAIN_SECONDS = 1.0


class SignatureRefused(PermissionDenied):
    """A message is not believed, for its signature or for want of one."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(
            f"a message is not believed: {message}",
            code=grpc.StatusCode.PERMISSION_DENIED,
            reason=reason,
        )


class Signed(NamedTuple):
    """A message that may be believed."""

    envelope: Envelope
    """What was signed; all of it when nothing was."""
    signed_by: str
    """The identity that signed it; empty for none."""


class _Keys(NamedTuple):
    identity_id: str
    keys: Sequence[MessageKey]
    time: float


class Signatures:
    """Of one connection. Methods raise BxmeshError."""

    def __init__(self, connection: Connection, key: SigningKey | None, mode: SignatureMode) -> None:
        if mode not in ("ignore", "accept", "require"):
            raise invalid("signatures", f"{mode!r} is none of ignore, accept, require")
        if mode == "require":
            _require_cryptography()
        self._connection = connection
        self._key = key
        self._mode = mode
        self._own_identity = ""
        self._known: OrderedDict[str, _Keys] = OrderedDict()

    @cached_property
    def _security(self) -> Any:
        return SecurityServiceStub(self._connection.channel)

    async def sign(self, envelope: Envelope) -> Envelope:
        """Returns a message as it is to be sent: signed when there is a key for it."""
        if self._key is None:
            return envelope
        if not envelope.sender:
            self._own_identity = self._own_identity or await self._who_am_i()
            envelope.sender = self._own_identity
        return self._key.sign(envelope)

    async def verify(self, envelope: Envelope) -> Signed:
        """Returns what is to be believed of a message.

        Raises SignatureRefused (SIGNATURE_REQUIRED, SIGNATURE_INVALID) for one that is not.
        """
        if not envelope.HasField("signature"):
            if self._mode == "require":
                raise SignatureRefused("SIGNATURE_REQUIRED", f"{envelope.sender} has not signed it")
            return Signed(envelope, "")
        if self._mode == "ignore" or (self._mode == "accept" and not _has_cryptography()):
            return Signed(envelope, "")
        from bxmesh.signing import opened, verify

        signature = envelope.signature
        try:
            message = opened(signature)
        except ValueError as error:
            raise SignatureRefused("SIGNATURE_INVALID", f"what is signed {error}") from None
        identity_id, key = await self._key_of(message.sender, signature)
        if key is None or not verify(signature, key.public_key):
            raise SignatureRefused(
                "SIGNATURE_INVALID", f"{message.sender} has no key {signature.key_id} that made it"
            )
        # A broadcast names nobody, whoever it is handed to.
        if message.recipient not in ("", envelope.recipient):
            raise SignatureRefused("SIGNATURE_INVALID", f"it was written to {message.recipient}")
        message.signature.CopyFrom(signature)
        message.create_time.CopyFrom(envelope.create_time)
        return Signed(message, identity_id)

    async def _who_am_i(self) -> str:
        answer = await self._connection.unary(self._security.GetIdentity, GetIdentityRequest())
        identity_id: str = answer.identity.identity_id
        return identity_id

    async def _key_of(self, sender: str, signature: Signature) -> tuple[str, MessageKey | None]:
        signed = signature.sign_time.ToNanoseconds()
        known = self._known.get(sender)
        for fresh_seconds in (_FRESH_SECONDS, _AGAIN_SECONDS):
            if known is None or time.monotonic() - known.time > fresh_seconds:
                known = await self._ask(sender)
            for key in known.keys:
                ends = key.expire_time.ToNanoseconds() if key.HasField("expire_time") else signed
                if key.key_id == signature.key_id and signed <= ends:
                    return known.identity_id, key
        return "", None

    async def _ask(self, sender: str) -> _Keys:
        """The keys of the identity of that name or, without one, of whose agent it is."""
        try:
            identity_id, keys = sender, await self._keys(sender)
        except NotFound:
            registry = self._connection.registry
            try:
                answer = await self._connection.unary(
                    registry.GetAgent, GetAgentRequest(agent_id=sender)
                )
                identity_id = answer.agent.identity
                keys = await self._keys(identity_id)
            except NotFound:
                identity_id, keys = "", ()
        known = self._known[sender] = _Keys(identity_id, keys, time.monotonic())
        self._known.move_to_end(sender)
        if len(self._known) > _MOST_SENDERS:
            self._known.popitem(last=False)
        return known

    async def _keys(self, identity_id: str) -> Sequence[MessageKey]:
        answer = await self._connection.unary(
            self._security.ListMessageKeys, ListMessageKeysRequest(identity_id=identity_id)
        )
        return tuple(answer.message_keys)


def signing_key(source: str | Path | None) -> SigningKey | None:
    """Returns the key in a file, that of `BXMESH_SIGNING_KEY` by default; None without one.

    Raises InvalidInput for a file that holds no such key, and without cryptography.
    """
    source = source or os.environ.get("BXMESH_SIGNING_KEY")
    if not source:
        return None
    _require_cryptography()
    from bxmesh.signing import SigningKey

    try:
        return SigningKey(Path(source).read_bytes())
    except (OSError, ValueError) as error:
        raise invalid("signing_key", f"{source} cannot be used: {error}") from error


@cache
def _has_cryptography() -> bool:
    try:
        import bxmesh.signing  # noqa: F401
    except ImportError as error:
        _log.warning("messages are not verified: %s", error)
        return False
    return True


def _require_cryptography() -> None:
    try:
        import bxmesh.signing  # noqa: F401
    except ImportError as error:
        raise invalid("signing_key", str(error)) from error
