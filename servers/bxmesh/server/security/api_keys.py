"""API keys: how they look, and whose one is."""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256

from bxmesh.server.errors import unauthenticated

from .directory import Directory
from .identities import Identity
from .mirror import Mirror

__all__ = ["ApiKeyAuthenticator", "digest", "new_secret"]

_ID = re.compile(r"(bx_[a-z2-7]{12})_[A-Za-z0-9_-]{43}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_NOBODYS = bytes(32)


def new_secret() -> tuple[str, str]:
    """Returns the name of a new key and its secret, which has 256 random bits and begins so."""
    key_id = "bx_" + "".join(secrets.choice(_ALPHABET) for _ in range(12))
    return key_id, f"{key_id}_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> bytes:
    """Returns what is stored of a secret: with so many random bits, SHA-256 hides it."""
    return sha256(secret.encode("utf-8", "replace")).digest()


class ApiKeyAuthenticator:
    """Knows API keys by the hashes in the directory."""

    def __init__(self, directory: Directory, mirror: Mirror) -> None:
        self._directory = directory
        self._mirror = mirror

    async def authenticate(self, credential: str) -> Identity | None:
        """Returns whose key it is, None when it is none.

        Raises MeshError UNAUTHENTICATED for one that is over or whose identity is disabled,
        UNAVAILABLE when the directory is too old to tell.
        """
        match = _ID.fullmatch(credential)
        if match is None:
            return None
        self._mirror.check_fresh()
        stored = self._directory.key(match[1])
        if not hmac.compare_digest(digest(credential), stored.digest if stored else _NOBODYS):
            return None
        identity = self._directory.resolve_key(match[1])
        if identity is None:
            raise unauthenticated(
                f"The key {match[1]} is revoked or expired, or its identity is disabled. "
                "Ask whoever gave it for another.",
                reason="KEY_ENDED",
                key_id=match[1],
            )
        return identity

    def renew(self, identity: Identity) -> Identity | None:
        """Returns an identity as it stands now by its key, None when the key is over."""
        return self._directory.resolve_key(identity.credential)
