"""The RPCs on identities and what they may do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.security.v1 import identity_pb2 as pb
from bxmesh.security.v1 import role_pb2
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument, not_found
from bxmesh.server.interceptors import current_identity
from bxmesh.server.pages import page_of
from bxmesh.server.streams.connection import redis_errors

from .admin_key import ADMIN
from .directory import API_KEY, IDENTITY
from .events import AuditEvent
from .granting import check_permissions, check_roles, require_covers
from .mesh import SecurityMesh
from .mutations import Context, Plan, aborted, mutate
from .permissions import METHODS, PERMISSIONS, methods_of
from .records import Change

__all__ = ["IdentityRpcs"]

_CHANGEABLE = (
    "kind",
    "display_name",
    "team",
    "roles",
    "permissions",
    "certificate_names",
    "message_keys",
    "disabled",
    "labels",
)
# Whoever changes one of these can be the identity, or lets it be there again.
_OPENING = ("certificate_names", "message_keys", "disabled")
_PUBLIC_KEY_BYTES = 32


class IdentityRpcs:
    """CreateIdentity to CheckPermission, without roles."""

    _mesh: SecurityMesh

    async def CreateIdentity(
        self, request: pb.CreateIdentityRequest, context: Context
    ) -> pb.CreateIdentityResponse:
        """Creates someone who may call."""

        def plan() -> Plan:
            record = pb.Identity()
            record.CopyFrom(request.identity)
            _clear_output(record)
            if self._mesh.directory.identity(record.identity_id) is not None:
                raise MeshError(
                    grpc.StatusCode.ALREADY_EXISTS,
                    "IDENTITY_EXISTS",
                    f"There is an identity {record.identity_id} already. Take another name.",
                )
            self._check_identity(record)
            require_covers(current_identity(), self._all_of(record), record.identity_id)
            record.create_time.GetCurrentTime()
            record.update_time.CopyFrom(record.create_time)
            return _plan(record, 0, pb.CreateIdentityResponse(identity=record), "identity.created")

        answer, revision, _ = await mutate(
            self._mesh, request, context, pb.CreateIdentityResponse, plan
        )
        answer.identity.revision = revision
        return answer

    async def UpdateIdentity(
        self, request: pb.UpdateIdentityRequest, context: Context
    ) -> pb.UpdateIdentityResponse:
        """Changes an identity."""
        mask = _mask(request.update_mask)

        def plan() -> Plan:
            present = self._changeable_identity(request.identity.identity_id)
            if request.expected_revision not in (0, present.revision):
                raise aborted(
                    f"{present.identity_id} has revision {present.revision} by now. "
                    "Read it again, then change that."
                )
            record = pb.Identity()
            record.CopyFrom(present)
            mask.MergeMessage(
                request.identity, record, replace_message_field=True, replace_repeated_field=True
            )
            return self._change_identity(
                present, record, pb.UpdateIdentityResponse, "identity.updated"
            )

        answer, revision, _ = await mutate(
            self._mesh, request, context, pb.UpdateIdentityResponse, plan
        )
        answer.identity.revision = revision
        return answer

    async def ListMessageKeys(
        self, request: pb.ListMessageKeysRequest, context: Context
    ) -> pb.ListMessageKeysResponse:
        """Returns the public keys that verify the messages of an identity."""
        record = self._identity_of(request.identity_id or current_identity().id)
        return pb.ListMessageKeysResponse(
            message_keys=() if record.disabled else record.message_keys
        )

    async def GrantPermissions(
        self, request: pb.GrantPermissionsRequest, context: Context
    ) -> pb.GrantPermissionsResponse:
        """Gives roles and permissions."""

        def plan() -> Plan:
            present = self._changeable_identity(request.identity_id)
            record = pb.Identity()
            record.CopyFrom(present)
            record.roles.extend(role for role in request.roles if role not in present.roles)
            record.permissions.extend(
                name for name in request.permissions if name not in present.permissions
            )
            return self._change_identity(
                present, record, pb.GrantPermissionsResponse, "permissions.granted"
            )

        answer, revision, _ = await mutate(
            self._mesh, request, context, pb.GrantPermissionsResponse, plan
        )
        answer.identity.revision = revision
        return answer

    async def RevokePermissions(
        self, request: pb.RevokePermissionsRequest, context: Context
    ) -> pb.RevokePermissionsResponse:
        """Takes roles and permissions."""

        def plan() -> Plan:
            present = self._changeable_identity(request.identity_id)
            record = pb.Identity()
            record.CopyFrom(present)
            record.roles[:] = [role for role in present.roles if role not in request.roles]
            record.permissions[:] = [
                name for name in present.permissions if name not in request.permissions
            ]
            return self._change_identity(
                present, record, pb.RevokePermissionsResponse, "permissions.revoked"
            )

        answer, revision, _ = await mutate(
            self._mesh, request, context, pb.RevokePermissionsResponse, plan
        )
        answer.identity.revision = revision
        return answer

    async def DeleteIdentity(
        self, request: pb.DeleteIdentityRequest, context: Context
    ) -> pb.DeleteIdentityResponse:
        """Deletes an identity with its keys; its tokens end with it."""

        def plan() -> Plan:
            present = self._changeable_identity(request.identity_id)
            changes = [Change(IDENTITY, present.identity_id, present.revision, None)]
            changes += [
                Change(API_KEY, key.key_id, -1, None)
                for key in self._mesh.directory.keys_of(present.identity_id)
            ]
            return Plan(
                changes,
                pb.DeleteIdentityResponse(),
                AuditEvent(
                    "identity.deleted",
                    resource=f"identity/{present.identity_id}",
                    details={"api_keys": str(len(changes) - 1)},
                ),
            )

        answer, _, _ = await mutate(self._mesh, request, context, pb.DeleteIdentityResponse, plan)
        return answer

    async def GetIdentity(
        self, request: pb.GetIdentityRequest, context: Context
    ) -> pb.GetIdentityResponse:
        """Describes an identity and all that it may do."""
        caller = current_identity()
        identity_id = request.identity_id or caller.id
        if identity_id != caller.id:
            caller.require("security_admin")
        record = self._identity_of(identity_id)
        permissions = self._mesh.directory.permissions_of(identity_id)
        if identity_id == caller.id:
            permissions = frozenset(name for name in permissions if caller.may(name))
        answer = pb.GetIdentityResponse(identity=record, effective_permissions=sorted(permissions))
        await self._add_last_use([answer.identity])
        return answer

    async def ListIdentities(
        self, request: pb.ListIdentitiesRequest, context: Context
    ) -> pb.ListIdentitiesResponse:
        """Lists a page of identities."""
        found = (
            record
            for record in self._mesh.directory.identities()
            if request.kind in (0, record.kind)
            and (not request.role or request.role in record.roles)
            and request.team in ("", record.team)
        )
        page, token = page_of(found, lambda record: record.identity_id, request)
        answer = pb.ListIdentitiesResponse(identities=page, next_page_token=token)
        await self._add_last_use(answer.identities)
        return answer

    async def ListPermissions(
        self, request: role_pb2.ListPermissionsRequest, context: Context
    ) -> role_pb2.ListPermissionsResponse:
        """Lists a page of all permissions there are."""
        page, token = page_of(sorted(PERMISSIONS), str, request)
        return role_pb2.ListPermissionsResponse(
            permissions=[
                role_pb2.Permission(
                    name=name, description=PERMISSIONS[name], methods=methods_of(name)
                )
                for name in page
            ],
            next_page_token=token,
        )

    async def CheckPermission(
        self, request: role_pb2.CheckPermissionRequest, context: Context
    ) -> role_pb2.CheckPermissionResponse:
        """Says whether a call would be allowed, and why."""
        caller = current_identity()
        identity_id = request.identity_id or caller.id
        if identity_id != caller.id:
            caller.require("security_admin")
        record = self._identity_of(identity_id)
        asked = _asked(request)
        granted = self._mesh.directory.granting(record)
        if identity_id == caller.id:
            granted = {name: by for name, by in granted.items() if caller.may(name)}
        missing = sorted(set(asked) - granted.keys())
        if record.disabled:
            return role_pb2.CheckPermissionResponse(
                missing_permissions=asked, explanation=f"{identity_id} is disabled."
            )
        by = sorted({role for name in asked for role in granted.get(name, ())})
        return role_pb2.CheckPermissionResponse(
            allowed=not missing,
            granted_by=by,
            missing_permissions=missing,
            explanation=_explanation(identity_id, request, asked, missing, by),
        )

    def _change_identity(
        self, present: pb.Identity, record: pb.Identity, kind: Any, event: str
    ) -> Plan:
        """Plans to replace a record, if the caller may give what is new in it."""
        if record == present:
            return Plan((), kind(identity=record), AuditEvent(event))
        self._check_identity(record)
        gained = self._all_of(record)
        opened = any(getattr(record, name) != getattr(present, name) for name in _OPENING)
        if not opened or record.disabled:
            gained -= self._all_of(present)
        require_covers(current_identity(), gained, record.identity_id)
        record.update_time.GetCurrentTime()
        plan = _plan(record, present.revision, kind(identity=record), event)
        details = {
            name: ",".join(sorted(set(now) ^ set(before)))
            for name, now, before in (
                ("roles", record.roles, present.roles),
                ("permissions", record.permissions, present.permissions),
            )
            if set(now) != set(before)
        }
        details["fields"] = ",".join(
            name for name in _CHANGEABLE if getattr(record, name) != getattr(present, name)
        )
        return plan._replace(event=AuditEvent(event, resource=plan.event.resource, details=details))

    def _check_identity(self, record: pb.Identity) -> None:
        check_permissions(record.permissions, "identity.permissions")
        check_roles(self._mesh.directory, record.roles, "identity.roles")
        names = [key.key_id for key in record.message_keys]
        for index, key in enumerate(record.message_keys):
            field = f"identity.message_keys[{index}]"
            if len(key.public_key) != _PUBLIC_KEY_BYTES:
                raise invalid_argument(f"{field}.public_key", "an Ed25519 key has 32 bytes")
            if key.key_id in names[:index]:
                raise invalid_argument(f"{field}.key_id", f"{key.key_id} is there twice")
        for name in record.certificate_names:
            owner = self._mesh.directory.by_certificate_name(name)
            if owner not in (None, record.identity_id):
                raise invalid_argument(
                    "identity.certificate_names",
                    f"{name} is the certificate name of {owner} already",
                    reason="CERTIFICATE_NAME_TAKEN",
                )

    def _all_of(self, record: pb.Identity) -> set[str]:
        return set() if record.disabled else set(self._mesh.directory.granting(record))

    def _identity_of(self, identity_id: str) -> pb.Identity:
        record = self._mesh.directory.identity(identity_id)
        if record is None:
            raise not_found(
                f"There is no identity {identity_id}.",
                reason="IDENTITY_NOT_FOUND",
                identity_id=identity_id,
            )
        return record

    def _changeable_identity(self, identity_id: str) -> pb.Identity:
        if identity_id == ADMIN.id:
            raise failed_precondition(
                f"{ADMIN.id} is whoever owns a server's state directory, and comes with bxmesh. "
                "Make other identities, and give them what they need.",
                reason="IDENTITY_BUILT_IN",
                subject=identity_id,
            )
        return self._identity_of(identity_id)

    async def _add_last_use(self, records: Iterable[pb.Identity]) -> None:
        found = list(records)
        with redis_errors():
            used = await self._mesh.usage.last_used([record.identity_id for record in found])
        for record in found:
            if moment := used.get(record.identity_id):
                record.last_used_time.FromSeconds(int(moment))


def _plan(record: pb.Identity, known: int, answer: Any, event: str) -> Plan:
    stored = pb.Identity()
    stored.CopyFrom(record)
    stored.ClearField("revision")
    return Plan(
        [Change(IDENTITY, record.identity_id, known, stored.SerializeToString())],
        answer,
        AuditEvent(
            event,
            resource=f"identity/{record.identity_id}",
            details={
                "roles": ",".join(record.roles),
                "permissions": ",".join(record.permissions),
            },
        ),
    )


def _clear_output(record: pb.Identity) -> None:
    for name in ("create_time", "update_time", "last_used_time", "revision"):
        record.ClearField(name)


def _mask(mask: FieldMask) -> FieldMask:
    for index, path in enumerate(mask.paths):
        if path not in _CHANGEABLE:
            raise invalid_argument(
                f"update_mask.paths[{index}]",
                f"{path} is none of the fields that can be changed: {', '.join(_CHANGEABLE)}",
            )
    return FieldMask(paths=mask.paths or _CHANGEABLE)


def _asked(request: role_pb2.CheckPermissionRequest) -> list[str]:
    if request.WhichOneof("action") == "permission":
        check_permissions([request.permission], "permission")
        return [request.permission]
    rule = METHODS.get(request.method)
    if rule is None:
        raise invalid_argument("method", f"there is no method {request.method}")
    return list(rule.permissions)


def _explanation(
    identity_id: str,
    request: role_pb2.CheckPermissionRequest,
    asked: list[str],
    missing: list[str],
    by: list[str],
) -> str:
    if missing:
        return f"{identity_id} lacks {', '.join(missing)}."
    if not asked:
        return "Every identity may call it."
    text = f"{', '.join(asked)}: by {', '.join(by)}."
    if request.resource:
        text += " The thing itself must belong to it or be shared with it."
    rule = METHODS.get(request.method)
    for permission, when in rule.also if rule else ():
        text += f" {permission} is needed {when}."
    return text
