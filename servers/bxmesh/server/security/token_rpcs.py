"""The RPCs on tokens."""

from __future__ import annotations

import time

from bxmesh.security.v1 import credential_pb2 as pb
from bxmesh.server.errors import not_found, permission_denied
from bxmesh.server.interceptors import current_identity
from bxmesh.server.streams.connection import redis_errors

from .addresses import address_of
from .events import AuditEvent
from .granting import check_permissions, require_covers, require_lasting
from .identities import Identity
from .mesh import SecurityMesh
from .mutations import Context, Plan, mutate
from .records import Change
from .tokens import REVOKED_TOKEN

__all__ = ["TokenRpcs"]

_USUAL_SECONDS = 900
_LONGEST_SECONDS = 3600
_DAY_SECONDS = 86_400


class TokenRpcs:
    """IssueToken, RevokeToken and ListTokenKeys."""

    _mesh: SecurityMesh

    async def IssueToken(
        self, request: pb.IssueTokenRequest, context: Context
    ) -> pb.IssueTokenResponse:
        """Issues a token with at most the rights of the caller's credential."""
        caller = current_identity()
        require_lasting(caller)
        check_permissions(request.permissions, "permissions")
        require_covers(caller, request.permissions, "a token")
        with redis_errors():
            issued = await self._mesh.tokens.issue(
                caller,
                request.permissions or caller.permissions,
                request.audience,
                self._expires(caller, request),
            )
            await self._mesh.events.audit(
                AuditEvent(
                    "token.issued",
                    caller.id,
                    address_of(context.peer()),
                    "/bxmesh.security.v1.SecurityService/IssueToken",
                    f"token/{issued.token_id}",
                    details={
                        "by": caller.credential,
                        "audience": request.audience,
                        "permissions": ",".join(request.permissions),
                    },
                )
            )
        answer = pb.IssueTokenResponse(token=issued.token, token_id=issued.token_id)
        answer.expire_time.FromSeconds(issued.expires)
        return answer

    def _expires(self, caller: Identity, request: pb.IssueTokenRequest) -> int:
        policy = self._mesh.policies.policy
        longest = (
            policy.max_token_lifetime.seconds
            if policy.HasField("max_token_lifetime")
            else _LONGEST_SECONDS
        )
        wanted = request.lifetime.seconds if request.HasField("lifetime") else _USUAL_SECONDS
        expires = int(min(time.time() + min(wanted, longest), caller.expires))
        if expires <= time.time():
            raise permission_denied(
                "The credential of this call ends at this moment.", reason="CREDENTIAL_ENDS"
            )
        return expires

    async def RevokeToken(
        self, request: pb.RevokeTokenRequest, context: Context
    ) -> pb.RevokeTokenResponse:
        """Ends a token before its time."""
        caller = current_identity()
        owner = self._mesh.tokens.owner(request.token_id)
        # Whether another's token exists is nobody's business.
        if owner is None or (owner != caller.id and not caller.may("security_admin")):
            raise not_found(
                f"You have no token {request.token_id}.",
                reason="TOKEN_NOT_FOUND",
                token_id=request.token_id,
            )

        def plan() -> Plan:
            now, mirror = int(time.time()), self._mesh.mirror
            ends = str(now + _DAY_SECONDS).encode()
            over = [
                name
                for name, record in mirror.all(REVOKED_TOKEN).items()
                if record.data.isdigit() and int(record.data) < now
            ]
            return Plan(
                [
                    Change(REVOKED_TOKEN, request.token_id, -1, ends),
                    *(Change(REVOKED_TOKEN, name, -1, None) for name in over[:1000]),
                ],
                pb.RevokeTokenResponse(),
                AuditEvent(
                    "token.revoked",
                    resource=f"token/{request.token_id}",
                    details={"reason": request.reason, "identity": owner},
                ),
            )

        answer, _, _ = await mutate(self._mesh, request, context, pb.RevokeTokenResponse, plan)
        return answer

    async def ListTokenKeys(
        self, request: pb.ListTokenKeysRequest, context: Context
    ) -> pb.ListTokenKeysResponse:
        """Holds the public keys that verify tokens."""
        keys = self._mesh.token_keys
        if not keys.all():
            with redis_errors():
                await keys.signing()
        answer = pb.ListTokenKeysResponse(issuer=keys.issuer)
        for key in keys.all():
            shown = answer.keys.add(key_id=key.key_id, public_key=key.public_bytes)
            if (ends := keys.ends(key)) != float("inf"):
                shown.expire_time.FromSeconds(int(ends))
        return answer
