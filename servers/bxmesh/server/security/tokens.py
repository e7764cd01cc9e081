"""Tokens: signed by the mesh, verified by every server without asking another."""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NoReturn

import jwt

from bxmesh.server.errors import MeshError, unauthenticated

from .admin_key import ADMIN
from .directory import Directory
from .identities import EVERYTHING, Identity
from .mesh_key import MeshKey
from .mirror import Mirror
from .token_keys import TokenKeys

__all__ = ["REVOKED_TOKEN", "Issued", "TokenAuthenticator", "Tokens"]

REVOKED_TOKEN = "revoked_token"
"""The kind of records that say which tokens ended before their time."""

_ALGORITHM = "EdDSA"
_TAG_BYTES = 8
_MOST_VERIFIED = 10_000
_REQUIRED = ["iss", "aud", "sub", "jti", "iat", "nbf", "exp", "perm", "cred", "born"]
_CREDENTIAL = "token/"


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token."""

    token: str
    token_id: str
    expires: int


class Tokens:
    """Issues tokens and knows whose one is by its name."""

    def __init__(self, keys: TokenKeys, key: MeshKey) -> None:
        self._keys = keys
        self._name_key = key.derive("bxmesh token names")

    async def issue(
        self, identity: Identity, permissions: Iterable[str], audience: str, expires: int
    ) -> Issued:
        """Returns a token of an identity by its present credential."""
        key_id, private = await self._keys.signing()
        now = int(time.time())
        token_id = self._new_name(identity.id)
        claims = {
            "iss": self._keys.issuer,
            "aud": audience or self._keys.issuer,
            "sub": identity.id,
            "jti": token_id,
            "iat": now,
            "nbf": now,
            "exp": expires,
            "perm": sorted(permissions),
            "cred": identity.credentials,
            "born": identity.born,
        }
        token = jwt.encode(claims, private, _ALGORITHM, {"kid": key_id})
        return Issued(token, token_id, expires)

    def owner(self, token_id: str) -> str | None:
        """Returns whose token has a name, None for no name of this mesh."""
        identity_id, _, rest = token_id.rpartition(":")
        nonce, _, tag = rest.partition(".")
        if not identity_id or not hmac.compare_digest(tag, self._tag(identity_id, nonce)):
            return None
        return identity_id

    def _new_name(self, identity_id: str) -> str:
        nonce = secrets.token_hex(8)
        return f"{identity_id}:{nonce}.{self._tag(identity_id, nonce)}"

    def _tag(self, identity_id: str, nonce: str) -> str:
        content = f"{identity_id}:{nonce}".encode("utf-8", "replace")
        return hmac.digest(self._name_key, content, "sha256")[:_TAG_BYTES].hex()


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token says, when its signature is good."""

    subject: str
    token_id: str
    expires: float
    permissions: frozenset[str] | None
    credentials: tuple[str, ...]
    """By which it was issued, the first one last."""
    born: str


class TokenAuthenticator:
    """Knows whose a token is."""

    def __init__(
        self, keys: TokenKeys, directory: Directory, mirror: Mirror, audiences: Sequence[str] = ()
    ) -> None:
        """Takes the audiences for which this server stands besides its mesh."""
        self._keys = keys
        self._directory = directory
        self._mirror = mirror
        self._audiences = [keys.issuer, *audiences]
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def authenticate(self, credential: str) -> Identity | None:
        """Returns whose token it is, None when it is none.

        Raises MeshError UNAUTHENTICATED for one that is wrong, over or revoked.
        """
        if not credential.startswith("eyJ"):
            return None
        self._mirror.check_fresh()
        digest = sha256(credential.encode("utf-8", "replace")).digest()
        verified = self._verified.get(digest)
        if verified is None:
            verified = self._verify(credential)
            self._verified[digest] = verified
            if len(self._verified) > _MOST_VERIFIED:
                self._verified.popitem(last=False)
        if verified.expires <= time.time():
            raise _refusal("TOKEN_EXPIRED", "has expired. Have a new one issued")
        identity = self._resolve(verified)
        if identity is None:
            raise _refusal(
                "TOKEN_REVOKED", "was revoked, or what it was issued by. Have a new one issued"
            )
        return identity

    def renew(self, identity: Identity) -> Identity | None:
        """Returns an identity as it stands now by its token, None when that is over."""
        return self._resolve(identity.token)

    def _resolve(self, verified: _Verified) -> Identity | None:
        if (
            self._mirror.get(REVOKED_TOKEN, verified.token_id) is not None
            or not all(map(self._holds, verified.credentials))
            or self._directory.born(verified.subject) != verified.born
        ):
            return None
        identity = self._directory.resolve(
            verified.subject,
            verified.permissions,
            _CREDENTIAL + verified.token_id,
            verified.expires,
            self._directory.rate_limit_of(verified.credentials[-1]),
        )
        return identity and replace(
            identity, issued_by=" ".join(verified.credentials), token=verified
        )

    def _holds(self, credential: str) -> bool:
        """Whether what a token was issued by has not been ended."""
        token_id = credential.removeprefix(_CREDENTIAL)
        if token_id != credential:
            return self._mirror.get(REVOKED_TOKEN, token_id) is None
        return self._directory.credential_valid(credential)

    def _verify(self, token: str) -> _Verified:
        try:
            header = jwt.get_unverified_header(token)
            key_id = header.get("kid")
            key = self._keys.get(key_id) if isinstance(key_id, str) else None
            if key is None or header.get("alg") != _ALGORITHM or "crit" in header:
                _wrong()
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[_ALGORITHM],
                audience=self._audiences,
                issuer=self._keys.issuer,
                options={"require": _REQUIRED, "verify_iat": True},
            )
        except jwt.ExpiredSignatureError:
            raise _refusal("TOKEN_EXPIRED", "has expired. Have a new one issued") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            _wrong()
        return _read(claims)


def _read(claims: dict[str, Any]) -> _Verified:
    subject, token_id, credential = claims["sub"], claims["jti"], claims["cred"]
    permissions, born, expires = claims["perm"], claims["born"], claims["exp"]
    texts = (subject, token_id, credential, born)
    if (
        not all(isinstance(text, str) for text in texts)
        or not isinstance(permissions, list)
        or not all(isinstance(name, str) for name in permissions)
        or not isinstance(expires, int)
    ):
        _wrong()
    everything = subject == ADMIN.id and permissions == [EVERYTHING]
    return _Verified(
        subject,
        token_id,
        float(expires),
        None if everything else frozenset(permissions),
        tuple(credential.split()) or ("",),
        born,
    )


def _wrong() -> NoReturn:
    raise _refusal("TOKEN_INVALID", "is not one of this mesh for this server") from None


def _refusal(reason: str, what: str) -> MeshError:
    return unauthenticated(f"The token of this call {what}.", reason=reason)
