"""The key of whoever owns the state directory."""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256
from pathlib import Path

from . import secret_file
from .identities import EVERYTHING, Identity

__all__ = ["ADMIN", "FILE_NAME", "AdminKeyAuthenticator", "load_or_create"]

FILE_NAME = "admin.key"

_KEY = re.compile(r"bx_admin_[A-Za-z0-9_-]{43}")
ADMIN = Identity(
    id="admin",
    kind="admin",
    permissions=frozenset({EVERYTHING}),
    credential="admin.key",
    # It is always there.
    born="0",
)


def load_or_create(state_dir: Path) -> str:
    """Returns the admin key of a state directory; the first of any processes to ask creates it.

    The file has mode 0600. Raises PermissionError when others can read it, ValueError when it
    holds no key.
    """
    path = state_dir / FILE_NAME
    key = secret_file.load_or_create(path, lambda: f"bx_admin_{secrets.token_urlsafe(32)}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{path} holds no admin key; remove it to have a new one made")
    return key


class AdminKeyAuthenticator:
    """Knows the admin by the hash of the key."""

    def __init__(self, key: str) -> None:
        self._digest = sha256(key.encode()).digest()

    async def authenticate(self, credential: str) -> Identity | None:
        """Returns the admin when the credential is the admin key."""
        digest = sha256(credential.encode("utf-8", "replace")).digest()
        return ADMIN if hmac.compare_digest(digest, self._digest) else None

    def renew(self, identity: Identity) -> Identity | None:
        """Returns the admin, whose key never ends."""
        return identity
