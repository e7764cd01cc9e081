"""Signatures of messages: Ed25519 over exactly the bytes that are sent.

Needs cryptography, which the extra `signing` brings.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from google.protobuf.message import DecodeError

from bxmesh.agent.v1.message_pb2 import Envelope, Signature

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
except ImportError as error:
    raise ImportError("signatures need cryptography: pip install 'bxmesh[signing]'") from error

__all__ = ["SigningKey", "key_id_of", "opened", "verify"]

_NONCE_BYTES = 16


class SigningKey:
    """A private key that signs messages. It never shows itself."""

    def __init__(self, pem: bytes) -> None:
        """Reads PKCS #8 in PEM, without a password. Raises ValueError for anything else."""
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise ValueError("it is no private key in PEM without a password") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it is no Ed25519 key")
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        """32 bytes."""
        self.key_id = key_id_of(self.public_key)
        """What the mesh knows it by."""

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id!r})"

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Writes a new key to a file that only its owner can read. Raises OSError, FileExistsError
        among it."""
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        return cls(pem)

    def sign(self, envelope: Envelope) -> Envelope:
        """Returns a message with its signature. It must have a message_id, sender and type."""
        signature = Signature(
            envelope=envelope.SerializeToString(),
            key_id=self.key_id,
            nonce=os.urandom(_NONCE_BYTES),
        )
        signature.sign_time.FromNanoseconds(time.time_ns())
        signature.signature = self._key.sign(_signed_bytes(signature))
        # The mesh fills in the rest from what is signed.
        return Envelope(message_type=envelope.message_type, signature=signature)


def key_id_of(public_key: bytes) -> str:
    """Returns the name under which the mesh's own tools register a public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def verify(signature: Signature, public_key: bytes) -> bool:
    """Returns whether a signature was made with the private key of a public one."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            signature.signature, _signed_bytes(signature)
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def opened(signature: Signature) -> Envelope:
    """Returns the message that is signed. Raises ValueError for bytes that hold anything besides."""
    envelope = Envelope()
    try:
        envelope.ParseFromString(signature.envelope)
    except DecodeError as error:
        raise ValueError("is no Envelope") from error
    for name in ("message_id", "sender", "message_type"):
        if not getattr(envelope, name):
            raise ValueError(f"has no {name}, which must be signed too")
    if envelope.HasField("signature"):
        raise ValueError("holds a signature itself")
    # What a parser passes over, fields that it does not know or that come twice, nobody looks at.
    envelope.DiscardUnknownFields()
    if envelope.ByteSize() != len(signature.envelope):
        raise ValueError("holds more than a message")
    return envelope


def _signed_bytes(signature: Signature) -> bytes:
    nanoseconds = signature.sign_time.ToNanoseconds()
    return signature.nonce + nanoseconds.to_bytes(8, "big", signed=True) + signature.envelope
