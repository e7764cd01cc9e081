"""Who there is and what they may do, as this server knows it: the records, read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from bxmesh.security.v1.credential_pb2 import ApiKey
from bxmesh.security.v1.identity_pb2 import Identity as IdentityRecord
from bxmesh.security.v1.identity_pb2 import IdentityKind
from bxmesh.security.v1.policy_pb2 import RateLimit
from bxmesh.security.v1.role_pb2 import Role

from .admin_key import ADMIN
from .identities import EVERYTHING, Identity, OnUse
from .mirror import Mirror
from .permissions import PERMISSIONS, ROLES

__all__ = ["API_KEY", "IDENTITY", "ROLE", "Directory", "StoredKey", "built_in_role"]

IDENTITY, ROLE, API_KEY = "identity", "role", "api_key"
"""The kinds of records that it reads."""

_DIGEST_BYTES = 32
_MOST_RESOLVED = 10_000
_KINDS = {
    IdentityKind.IDENTITY_KIND_UNSPECIFIED: "user",
    IdentityKind.IDENTITY_KIND_USER: "user",
    IdentityKind.IDENTITY_KIND_AGENT: "agent",
    IdentityKind.IDENTITY_KIND_SERVICE: "service",
}

T = TypeVar("T")


class StoredKey(NamedTuple):
    """An API key as it is stored: without its secret."""

    digest: bytes
    """SHA-256 of the secret."""
    key: ApiKey

    def pack(self) -> bytes:
        """Returns the content of its record."""
        return self.digest + self.key.SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> StoredKey:
        """Returns the key of a record."""
        return cls(data[:_DIGEST_BYTES], ApiKey.FromString(data[_DIGEST_BYTES:]))

    @property
    def ends(self) -> float:
        """When it ceases to be accepted, in seconds since 1970."""
        ends = float("inf")
        for field, moment in (
            ("expire_time", self.key.expire_time),
            ("revoke_time", self.key.revoke_time),
        ):
            if self.key.HasField(field):  # type: ignore[arg-type]
                ends = min(ends, moment.ToMicroseconds() / 1e6)
        return ends


class _Parsed(Generic[T]):
    """The records of a kind, each parsed once."""

    def __init__(
        self, mirror: Mirror, kind: str, parse: Callable[[bytes], T], revise: Callable[[T, int], T]
    ) -> None:
        self._mirror = mirror
        self._kind = kind
        self._parse = parse
        self._revise = revise
        self._parsed: dict[str, tuple[int, T]] = {}

    def get(self, name: str) -> T | None:
        record = self._mirror.get(self._kind, name)
        if record is None:
            self._parsed.pop(name, None)
            return None
        revision, value = self._parsed.get(name, (-1, None))
        if value is None or revision != record.revision:
            value = self._revise(self._parse(record.data), record.revision)
            self._parsed[name] = (record.revision, value)
        return value

    def all(self) -> Iterator[T]:
        for name in sorted(self._mirror.all(self._kind)):
            value = self.get(name)
            if value is not None:
                yield value


class Directory:
    """Reads the mirror. What it returns belongs to it: copy before you change."""

    def __init__(self, mirror: Mirror, on_use: OnUse = lambda identity_id, names: None) -> None:
        """Takes who is told of permissions that handlers ask identities for."""
        self._on_use = on_use
        self._identities = _Parsed(mirror, IDENTITY, IdentityRecord.FromString, _revised)
        self._roles = _Parsed(mirror, ROLE, Role.FromString, _revised)
        self._keys = _Parsed(mirror, API_KEY, StoredKey.parse, lambda key, revision: key)
        self._resolved: dict[Any, Identity | None] = {}
        self._by_certificate: dict[str, str] | None = None
        mirror.on_change(self._forget)

    def _forget(self) -> None:
        self._resolved.clear()
        self._by_certificate = None

    def identity(self, identity_id: str) -> IdentityRecord | None:
        """Returns the record of an identity; the built-in admin has one too."""
        return _ADMIN_RECORD if identity_id == ADMIN.id else self._identities.get(identity_id)

    def born(self, identity_id: str) -> str:
        """Returns what tells an identity from one of the same name that was there before it; empty
        when there is none."""
        record = self.identity(identity_id)
        return _born(record) if record else ""

    def identities(self) -> Iterator[IdentityRecord]:
        """All identities by name, without the built-in admin."""
        return self._identities.all()

    def role(self, role_id: str) -> Role | None:
        """Returns a role, built in or not."""
        return built_in_role(role_id) or self._roles.get(role_id)

    def roles(self) -> list[Role]:
        """All roles by name."""
        found = [*map(built_in_role, ROLES), *self._roles.all()]
        return sorted((role for role in found if role), key=lambda role: role.role_id)

    def key(self, key_id: str) -> StoredKey | None:
        """Returns an API key, ended or not."""
        return self._keys.get(key_id)

    def all_keys(self) -> Iterator[StoredKey]:
        """All API keys by name."""
        return self._keys.all()

    def keys_of(self, identity_id: str) -> Iterable[ApiKey]:
        """The API keys of an identity, ended ones too."""
        return (stored.key for stored in self.all_keys() if stored.key.identity_id == identity_id)

    def granting(self, record: IdentityRecord) -> dict[str, list[str]]:
        """Returns all that an identity may do, and by which roles, or "identity", it may."""
        granted: dict[str, list[str]] = {}
        for role_id in record.roles:
            role = self.role(role_id)
            for permission in role.permissions if role else ():
                granted.setdefault(permission, []).append(role_id)
        for permission in record.permissions:
            granted.setdefault(permission, []).append("identity")
        # What no longer exists, nobody has.
        return {name: by for name, by in sorted(granted.items()) if name in PERMISSIONS}

    def roles_of(self, identity_id: str) -> Collection[str]:
        """Returns the roles of an identity; none when there is no such identity."""
        record = self.identity(identity_id)
        return record.roles if record else ()

    def permissions_of(self, identity_id: str) -> frozenset[str]:
        """Returns all that an identity may do by any credential; nothing when there is none."""
        record = self.identity(identity_id)
        return frozenset(self.granting(record)) if record else frozenset()

    def resolve(
        self,
        identity_id: str,
        only: frozenset[str] | None,
        credential: str,
        expires: float,
        rate_limit: RateLimit | None = None,
    ) -> Identity | None:
        """Returns an identity by a credential that allows `only` so much, None for all of it.

        Returns None when there is no such identity, or it is disabled.
        """
        cached = (identity_id, only, credential, expires)
        if cached not in self._resolved:
            if len(self._resolved) >= _MOST_RESOLVED:
                self._resolved.clear()
            self._resolved[cached] = self._resolve(
                identity_id, only, credential, expires, rate_limit
            )
        return self._resolved[cached]

    def _resolve(
        self,
        identity_id: str,
        only: frozenset[str] | None,
        credential: str,
        expires: float,
        rate_limit: RateLimit | None,
    ) -> Identity | None:
        if identity_id == ADMIN.id:
            allowed = frozenset({EVERYTHING}) if only is None else only & PERMISSIONS.keys()
            return Identity(
                ADMIN.id,
                ADMIN.kind,
                allowed,
                roles=ADMIN.roles,
                credential=credential,
                expires=expires,
                born=ADMIN.born,
                rate_limit=rate_limit,
                on_use=self._on_use,
            )
        record = self.identity(identity_id)
        if record is None or record.disabled:
            return None
        granted = self.permissions_of(identity_id)
        return Identity(
            identity_id,
            _KINDS.get(record.kind, "user"),
            granted if only is None else granted & only,
            team=record.team,
            roles=frozenset(record.roles),
            credential=credential,
            expires=expires,
            born=_born(record),
            rate_limit=rate_limit,
            on_use=self._on_use,
        )

    def resolve_key(self, key_id: str) -> Identity | None:
        """Returns the identity of an API key that is accepted now, None when none is."""
        stored = self.key(key_id)
        if stored is None or stored.ends <= time.time():
            return None
        key = stored.key
        return self.resolve(
            key.identity_id,
            frozenset(key.permissions) or None,
            key_id,
            stored.ends,
            self.rate_limit_of(key_id),
        )

    def rate_limit_of(self, credential: str) -> RateLimit | None:
        """Returns an API key's own rate limit; None without one, and for other credentials."""
        stored = self.key(credential)
        return stored.key.rate_limit if stored and stored.key.HasField("rate_limit") else None

    def credential_valid(self, name: str) -> bool:
        """Whether an API key is accepted now; other credentials end by themselves."""
        return not name.startswith("bx_") or self.resolve_key(name) is not None

    def by_certificate_name(self, name: str) -> str | None:
        """Returns whose certificate has a subject alternative name."""
        if self._by_certificate is None:
            self._by_certificate = {
                certificate_name: record.identity_id
                for record in self.identities()
                for certificate_name in record.certificate_names
            }
        return self._by_certificate.get(name)


def built_in_role(role_id: str) -> Role | None:
    """Returns a role that comes with bxmesh."""
    return _BUILT_IN.get(role_id)


def _born(record: IdentityRecord) -> str:
    return str(record.create_time.ToNanoseconds())


def _revised(record: Any, revision: int) -> Any:
    record.revision = revision
    return record


_BUILT_IN: Mapping[str, Role] = {
    name: Role(
        role_id=name, description=description, permissions=sorted(permissions), built_in=True
    )
    for name, (description, permissions) in ROLES.items()
}
_ADMIN_RECORD = IdentityRecord(
    identity_id=ADMIN.id,
    kind=IdentityKind.IDENTITY_KIND_USER,
    display_name="whoever owns the state directory of a server",
    roles=["admin"],
)
