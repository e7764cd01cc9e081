"""The RPCs on API keys."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from google.protobuf.duration_pb2 import Duration

from bxmesh.security.v1 import credential_pb2 as pb
from bxmesh.security.v1.policy_pb2 import RateLimit
from bxmesh.server.errors import failed_precondition, not_found
from bxmesh.server.interceptors import current_identity
from bxmesh.server.pages import page_of
from bxmesh.server.streams.connection import redis_errors

from .api_keys import digest, new_secret
from .directory import API_KEY, StoredKey
from .events import AuditEvent
from .granting import check_permissions, require_covers, require_lasting
from .identities import Identity
from .mesh import SecurityMesh
from .mutations import Context, Plan, mutate
from .policy_checks import check_rate_limit
from .records import Change

__all__ = ["KeyRpcs"]

_YEAR_SECONDS = 365 * 86400
_OVERLAP_SECONDS = 3600
# So long after its end a key is still listed.
_KEPT_SECONDS = 90 * 86400


class KeyRpcs:
    """CreateApiKey, ListApiKeys, RotateApiKey and RevokeApiKey."""

    _mesh: SecurityMesh

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Context
    ) -> pb.CreateApiKeyResponse:
        """Creates a key and shows its secret, this once."""
        caller = current_identity()
        require_lasting(caller)
        owner = request.identity_id or caller.id
        if owner != caller.id or request.HasField("rate_limit"):
            caller.require("security_admin")
        if request.HasField("rate_limit"):
            check_rate_limit(request.rate_limit, "rate_limit")
        key_id, secret = new_secret()

        def plan() -> Plan:
            if self._mesh.directory.identity(owner) is None:
                raise not_found(
                    f"There is no identity {owner}.",
                    reason="IDENTITY_NOT_FOUND",
                    identity_id=owner,
                )
            check_permissions(request.permissions, "permissions")
            self._require_key_covers(owner, request.permissions)
            key = pb.ApiKey(
                key_id=key_id,
                identity_id=owner,
                display_name=request.display_name,
                permissions=sorted(request.permissions),
                rate_limit=self._rate_limit(request, caller),
            )
            key.create_time.GetCurrentTime()
            lifetime = request.lifetime if request.HasField("lifetime") else None
            key.expire_time.FromSeconds(key.create_time.seconds + self._lifetime(lifetime))
            return Plan(
                [
                    Change(API_KEY, key_id, 0, StoredKey(digest(secret), key).pack()),
                    *self._forgotten(owner),
                ],
                pb.CreateApiKeyResponse(api_key=key),
                _event("api_key.created", key),
            )

        answer, _, new = await mutate(self._mesh, request, context, pb.CreateApiKeyResponse, plan)
        if new:
            answer.secret = secret
        return answer

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Context
    ) -> pb.ListApiKeysResponse:
        """Lists a page of keys, newest first."""
        caller = current_identity()
        owner = request.identity_id or caller.id
        if owner != caller.id:
            caller.require("security_admin")
        now = time.time()
        found = [
            stored.key
            for stored in self._mesh.directory.all_keys()
            if stored.key.identity_id == owner and (request.include_ended or stored.ends > now)
        ]
        found.sort(key=_age, reverse=True)
        page, token = page_of(found, _age, request, newest_first=True)
        answer = pb.ListApiKeysResponse(api_keys=page, next_page_token=token)
        with redis_errors():
            used = await self._mesh.usage.last_used([key.key_id for key in page])
        for key in answer.api_keys:
            if moment := used.get(key.key_id):
                key.last_used_time.FromSeconds(int(moment))
        return answer

    async def RotateApiKey(
        self, request: pb.RotateApiKeyRequest, context: Context
    ) -> pb.RotateApiKeyResponse:
        """Replaces a key; both work for a while."""
        require_lasting(current_identity())
        key_id, secret = new_secret()

        def plan() -> Plan:
            old = self._key(request.key_id)
            if old.ends <= time.time() or old.key.successor_key_id:
                raise failed_precondition(
                    f"{old.key.key_id} has ended or was rotated already. Create a new key.",
                    reason="KEY_ENDED",
                    subject=old.key.key_id,
                )
            self._require_key_covers(old.key.identity_id, old.key.permissions)
            new, ended = pb.ApiKey(), pb.ApiKey()
            new.CopyFrom(old.key)
            ended.CopyFrom(old.key)
            new.key_id = ended.successor_key_id = key_id
            new.create_time.GetCurrentTime()
            now = new.create_time.seconds
            lifetime = request.lifetime if request.HasField("lifetime") else None
            if lifetime is None and old.key.HasField("expire_time"):
                lifetime = Duration(
                    seconds=old.key.expire_time.seconds - old.key.create_time.seconds
                )
            new.expire_time.FromSeconds(now + self._lifetime(lifetime))
            overlap = request.overlap.seconds if request.HasField("overlap") else _OVERLAP_SECONDS
            ends = min(now + overlap, int(min(old.ends, 2.0**40)))
            ended.expire_time.FromSeconds(ends)
            return Plan(
                [
                    Change(API_KEY, key_id, 0, StoredKey(digest(secret), new).pack()),
                    self._change_key(old, ended),
                ],
                pb.RotateApiKeyResponse(api_key=new, old_api_key=ended),
                _event("api_key.rotated", ended, successor=key_id),
            )

        answer, _, new = await mutate(self._mesh, request, context, pb.RotateApiKeyResponse, plan)
        if new:
            answer.secret = secret
        return answer

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Context
    ) -> pb.RevokeApiKeyResponse:
        """Ends a key."""

        def plan() -> Plan:
            old = self._key(request.key_id)
            if old.key.HasField("revoke_time"):
                return Plan(
                    (), pb.RevokeApiKeyResponse(api_key=old.key), AuditEvent("api_key.revoked")
                )
            ended = pb.ApiKey()
            ended.CopyFrom(old.key)
            ended.revoke_time.GetCurrentTime()
            return Plan(
                [self._change_key(old, ended)],
                pb.RevokeApiKeyResponse(api_key=ended),
                _event("api_key.revoked", ended, reason=request.reason),
            )

        answer, _, _ = await mutate(self._mesh, request, context, pb.RevokeApiKeyResponse, plan)
        return answer

    def _key(self, key_id: str) -> StoredKey:
        """Returns a key that the caller may change."""
        caller = current_identity()
        stored = self._mesh.directory.key(key_id)
        # Whether another's key exists is nobody's business.
        if stored is None or (
            stored.key.identity_id != caller.id and not caller.may("security_admin")
        ):
            raise not_found(f"You have no key {key_id}.", reason="KEY_NOT_FOUND", key_id=key_id)
        return stored

    def _change_key(self, old: StoredKey, key: pb.ApiKey) -> Change:
        record = self._mesh.mirror.get(API_KEY, key.key_id)
        return Change(
            API_KEY, key.key_id, record.revision if record else 0, old._replace(key=key).pack()
        )

    def _forgotten(self, owner: str) -> Iterator[Change]:
        """Deletes the keys of an identity that ended long ago."""
        before = time.time() - _KEPT_SECONDS
        for key in self._mesh.directory.keys_of(owner):
            stored = self._mesh.directory.key(key.key_id)
            if stored is not None and stored.ends < before:
                yield Change(API_KEY, key.key_id, -1, None)

    def _require_key_covers(self, owner: str, permissions: Iterable[str]) -> None:
        """Raises MeshError when a key would allow more than the caller's credential does."""
        allowed = self._mesh.directory.permissions_of(owner)
        wanted = frozenset(permissions)
        require_covers(current_identity(), allowed & wanted if wanted else allowed, owner)

    def _rate_limit(self, request: pb.CreateApiKeyRequest, caller: Identity) -> RateLimit | None:
        if request.HasField("rate_limit"):
            return request.rate_limit
        # Who is limited gets rid of it by no key that they make.
        return None if caller.may("security_admin") else caller.rate_limit

    def _lifetime(self, wanted: Duration | None) -> int:
        policy = self._mesh.policies.policy
        longest = (
            policy.max_key_lifetime.seconds
            if policy.HasField("max_key_lifetime")
            else _YEAR_SECONDS
        )
        return min(longest, wanted.seconds) if wanted is not None else longest


def _age(key: pb.ApiKey) -> str:
    return f"{key.create_time.ToMicroseconds():020} {key.key_id}"


def _event(event: str, key: pb.ApiKey, **details: str) -> AuditEvent:
    return AuditEvent(
        event,
        resource=f"api_key/{key.key_id}",
        details={
            "identity": key.identity_id,
            "permissions": ",".join(key.permissions),
            **details,
        },
    )
