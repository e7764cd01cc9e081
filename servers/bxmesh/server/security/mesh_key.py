"""The secret that all processes of one mesh share, and Redis never holds.

Whoever can write to Redis, but has not this key, can forge neither records of the security service
nor work items. From it come the keys for single purposes.
"""

from __future__ import annotations

import hmac
import re
import secrets
from hashlib import sha256
from pathlib import Path

from . import secret_file

__all__ = ["FILE_NAME", "MeshKey", "load_or_create"]

FILE_NAME = "mesh.key"

_KEY = re.compile(r"[0-9a-f]{64}")


class MeshKey:
    """Makes keys for single purposes; never shows itself."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Takes 32 random bytes."""
        if len(key) != 32:
            raise ValueError("a mesh key has 32 bytes")
        self._key = key

    def __repr__(self) -> str:
        return "MeshKey(…)"

    def derive(self, purpose: str) -> bytes:
        """Returns the 32 bytes for a purpose (HKDF-Expand of RFC 5869, one block)."""
        return hmac.digest(self._key, purpose.encode() + b"\x01", "sha256")

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without showing them."""
        return sha256(self.derive("fingerprint")).hexdigest()[:16]


def load_or_create(path: Path) -> MeshKey:
    """Returns the key of a file with 64 hexadecimal digits; the first process to ask makes it.

    Servers and workers of one mesh on several hosts need copies of one file. Raises
    PermissionError when others can read it, ValueError when it holds no key.
    """
    text = secret_file.load_or_create(path, lambda: secrets.token_hex(32))
    if not _KEY.fullmatch(text):
        raise ValueError(f"{path} holds no mesh key; remove it to have a new one made")
    return MeshKey(bytes.fromhex(text))
