"""Signed messages: whether they are what their sender signed, and come for the first time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any, Protocol

import protovalidate
from redis.asyncio import Redis

from bxmesh.agent.v1.message_pb2 import Envelope, Signature
from bxmesh.security.v1 import policy_pb2, violation_pb2
from bxmesh.security.v1.identity_pb2 import Identity, MessageKey
from bxmesh.server.errors import invalid_argument, permission_denied
from bxmesh.server.interceptors.validation import refuse_invalid
from bxmesh.server.streams.connection import redis_errors
from bxmesh.signing import opened, verify

from .events import SecurityEvents, ViolationEvent
from .policy_source import PolicySource

__all__ = ["UNVERIFIED", "SignatureSource", "Signatures"]

_TOLERANCE_SECONDS = 300.0
# From the earliest moment at which a signature is taken to the last.
_REMEMBERED_MS = int(2 * _TOLERANCE_SECONDS * 1000) + 1000
_MOST_BYTES_AT_ONCE = 64 * 1024
_KEY = "bxmesh:{security}:nonce:"


class _Identities(Protocol):
    def identity(self, identity_id: str) -> Identity | None: ...


class SignatureSource(Protocol):
    """Opens what is signed."""

    async def open(self, envelope: Envelope, identity_id: str, once: str) -> Envelope:
        """Returns a message with all that its sender signed."""


class Signatures:
    """Asks of messages what the policy says: nothing, a good signature if any, or one."""

    def __init__(
        self, redis: Redis, identities: _Identities, policies: PolicySource, events: SecurityEvents
    ) -> None:
        self._redis = redis
        self._identities = identities
        self._policies = policies
        self._events = events

    async def open(self, envelope: Envelope, identity_id: str, once: str) -> Envelope:
        """Returns a message with all that its sender signed, and the signature beside it.

        The same signature is taken again where it belongs to the same mutation, which `once` names.
        Raises MeshError INVALID_ARGUMENT for what cannot be read, PERMISSION_DENIED
        (SIGNATURE_REQUIRED, SIGNATURE_INVALID, SIGNATURE_TIME, SIGNATURE_REPEATED) for what the
        policy refuses.
        """
        mode = self._policies.policy.signing_mode
        if not envelope.HasField("signature"):
            if mode == policy_pb2.SIGNING_MODE_REQUIRE:
                self._refuse(
                    "SIGNATURE_REQUIRED",
                    "The policy asks for signed messages: sign them with a message key of "
                    f"{identity_id}.",
                    identity_id,
                    envelope,
                )
            return envelope
        message = await _read(envelope.signature)
        if mode != policy_pb2.SIGNING_MODE_OFF:
            await self._check(message, identity_id, once)
        return message

    async def _check(self, message: Envelope, identity_id: str, once: str) -> None:
        signature = message.signature
        key = self._key(identity_id, signature.key_id)
        if key is None or not verify(signature, key.public_key):
            self._refuse(
                "SIGNATURE_INVALID",
                f"The signature was not made with a message key {signature.key_id} of "
                f"{identity_id}, or for something else.",
                identity_id,
                message,
            )
        away = time.time() - signature.sign_time.ToMicroseconds() / 1e6
        if abs(away) > _TOLERANCE_SECONDS:
            self._refuse(
                "SIGNATURE_TIME",
                f"The message was signed {away:.0f} s ago by the clock of the server; "
                f"{_TOLERANCE_SECONDS:.0f} s are taken. Set the clock, or sign it again.",
                identity_id,
                message,
            )
        if not await self._first(signature, identity_id, once):
            self._refuse(
                "SIGNATURE_REPEATED",
                "The message has come before with this signature. Sign it again.",
                identity_id,
                message,
            )

    def _key(self, identity_id: str, key_id: str) -> MessageKey | None:
        record = self._identities.identity(identity_id)
        for key in record.message_keys if record else ():
            ends = key.expire_time.ToMicroseconds() / 1e6 if key.HasField("expire_time") else None
            if key.key_id == key_id and (ends is None or time.time() < ends):
                return key
        return None

    async def _first(self, signature: Signature, identity_id: str, once: str) -> bool:
        name = hashlib.sha256(
            b"\0".join((identity_id.encode(), signature.key_id.encode(), signature.nonce))
        ).hexdigest()
        # A nonce belongs to one message, and that to one mutation.
        use = hashlib.sha256(signature.signature + once.encode()).digest() if once else b""
        with redis_errors():
            if await self._redis.set(_KEY + name, use, px=_REMEMBERED_MS, nx=True):
                return True
            present: Any = await self._redis.get(_KEY + name)
        return bool(use) and present == use

    def _refuse(self, reason: str, text: str, identity_id: str, message: Envelope) -> None:
        error = permission_denied(text, reason=reason, identity_id=identity_id)
        self._events.violation(
            ViolationEvent(
                violation_pb2.VIOLATION_KIND_SIGNATURE,
                violation_pb2.SEVERITY_HIGH,
                rule=reason,
                message=error.message,
                identity_id=identity_id,
                action=message.message_type,
                resource=f"agent/{message.recipient}" if message.recipient else "",
            )
        )
        raise error


async def _read(signature: Signature) -> Envelope:
    """Returns the message that is signed, its signature beside it; raises MeshError
    INVALID_ARGUMENT for bytes that are none."""
    if len(signature.envelope) > _MOST_BYTES_AT_ONCE:
        # With a million headers it takes seconds, in which others are to be served.
        return await asyncio.to_thread(_opened, signature)
    return _opened(signature)


def _opened(signature: Signature) -> Envelope:
    field = "envelope.signature.envelope"
    try:
        message = opened(signature)
    except ValueError as error:
        raise invalid_argument(field, f"what is signed {error}") from None
    refuse_invalid(_VALIDATOR, message)
    message.signature.CopyFrom(signature)
    return message


_VALIDATOR = protovalidate.Validator()


class _Unverified:
    async def open(self, envelope: Envelope, identity_id: str, once: str) -> Envelope:
        return await _read(envelope.signature) if envelope.HasField("signature") else envelope


UNVERIFIED: SignatureSource = _Unverified()
"""What takes messages as they are."""
