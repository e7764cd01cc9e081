"""The keys that sign tokens: one signs, those before it still verify."""

from __future__ import annotations

import json
import secrets
import time
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .mesh_key import MeshKey
from .mirror import Mirror
from .records import Change, ConflictError

__all__ = ["TOKEN_KEY", "TokenKey", "TokenKeys"]

TOKEN_KEY = "token_key"
"""The kind of their records."""

# Tokens live for a day at most.
_OVERLAP_SECONDS = 86_400
_NONCE_BYTES = 12


class TokenKey(NamedTuple):
    """A key as every server knows it."""

    key_id: str
    created: float
    public: Ed25519PublicKey
    sealed: bytes
    """The private key, which only the mesh key opens."""

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes."""
        return self.public.public_bytes_raw()


class TokenKeys:
    """Keys in the security records; the newest signs."""

    def __init__(self, mirror: Mirror, key: MeshKey, days: int) -> None:
        """Takes for how many days a key signs."""
        self._mirror = mirror
        self._seal = AESGCM(key.derive("bxmesh token keys"))
        self._signs_seconds = days * 86_400
        self._keys: dict[str, TokenKey] = {}
        self._private: tuple[str, Ed25519PrivateKey] | None = None
        self.issuer = f"bxmesh:{key.fingerprint}"
        """Who issues the tokens: this mesh, by its key."""
        mirror.on_change(self._read)
        self._read()

    def get(self, key_id: str) -> TokenKey | None:
        """Returns a key that still verifies, None for others."""
        key = self._keys.get(key_id)
        return key if key and self.ends(key) > time.time() else None

    def all(self) -> list[TokenKey]:
        """Those that verify, the one that signs first."""
        found = sorted(self._keys.values(), key=lambda key: key.created, reverse=True)
        return [key for key in found if self.ends(key) > time.time()]

    def ends(self, key: TokenKey) -> float:
        """Returns when the last token that a key verifies ends; without end for the one that signs."""
        successors = [other.created for other in self._keys.values() if other.created > key.created]
        return min(successors) + _OVERLAP_SECONDS if successors else float("inf")

    async def signing(self) -> tuple[str, Ed25519PrivateKey]:
        """Returns the name and the private key that sign now; makes one when it is time for it."""
        present = self.all()
        if not present or present[0].created + self._signs_seconds < time.time():
            await self.rotate()
            present = self.all()
        key = present[0]
        if self._private is None or self._private[0] != key.key_id:
            nonce, sealed = key.sealed[:_NONCE_BYTES], key.sealed[_NONCE_BYTES:]
            raw = self._seal.decrypt(nonce, sealed, key.key_id.encode())
            self._private = key.key_id, Ed25519PrivateKey.from_private_bytes(raw)
        return self._private

    async def rotate(self) -> str:
        """Has a new key sign from now on, and forgets those that verify nothing any more."""
        private = Ed25519PrivateKey.generate()
        number = max((int(key_id) for key_id in self._keys), default=0) + 1
        key_id = f"{number:08}"
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._seal.encrypt(nonce, private.private_bytes_raw(), key_id.encode())
        data = json.dumps(
            {
                "created": time.time(),
                "public": private.public_key().public_bytes_raw().hex(),
                "sealed": sealed.hex(),
            }
        )
        over = [name for name, key in self._keys.items() if self.ends(key) <= time.time()]
        try:
            await self._mirror.commit(
                [
                    Change(TOKEN_KEY, key_id, 0, data.encode()),
                    *(Change(TOKEN_KEY, name, -1, None) for name in over),
                ]
            )
        except ConflictError:
            # Another server was faster; its key is as good.
            await self._mirror.catch_up()
        return key_id

    def _read(self) -> None:
        names = self._mirror.all(TOKEN_KEY)
        if names.keys() == self._keys.keys():
            return
        self._keys = {
            name: key for name, record in names.items() if (key := _parsed(name, record.data))
        }


def _parsed(name: str, data: bytes) -> TokenKey | None:
    try:
        values = json.loads(data)
        return TokenKey(
            name,
            float(values["created"]),
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(values["public"])),
            bytes.fromhex(values["sealed"]),
        )
    except (ValueError, KeyError, TypeError, InvalidTag):
        return None
