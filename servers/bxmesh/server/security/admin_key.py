"""The key of whoever owns the state directory."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from hashlib import sha256
from pathlib import Path

from .identities import EVERYTHING, Identity

__all__ = ["FILE_NAME", "AdminKeyAuthenticator", "load_or_create"]

FILE_NAME = "admin.key"

_KEY = re.compile(r"bx_admin_[A-Za-z0-9_-]{43}")
_ADMIN = Identity(id="admin", kind="admin", permissions=frozenset({EVERYTHING}))


def load_or_create(state_dir: Path) -> str:
    """Returns the admin key of a state directory; the first of any processes to ask creates it.

    The file has mode 0600. Raises PermissionError when others can read it, ValueError when it
    holds no key.
    """
    path = state_dir / FILE_NAME
    if not path.exists():
        _create(path)
    with path.open() as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise PermissionError(f"{path} can be read by others; run: chmod 600 {path}")
        key = file.read(256).strip()
    if not _KEY.fullmatch(key):
        raise ValueError(f"{path} holds no admin key; remove it to have a new one made")
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE_NAME}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"bx_admin_{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, does not replace the key of a process that was faster.
        path.hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        draft.unlink()


class AdminKeyAuthenticator:
    """Knows the admin by the hash of the key."""

    def __init__(self, key: str) -> None:
        self._digest = sha256(key.encode()).digest()

    async def authenticate(self, credential: str) -> Identity | None:
        """Returns the admin when the credential is the admin key."""
        digest = sha256(credential.encode("utf-8", "replace")).digest()
        return _ADMIN if hmac.compare_digest(digest, self._digest) else None
