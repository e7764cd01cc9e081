"""The RPCs on roles."""

from __future__ import annotations

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.security.v1 import role_pb2 as pb
from bxmesh.server.errors import MeshError, failed_precondition, invalid_argument, not_found
from bxmesh.server.interceptors import current_identity
from bxmesh.server.pages import page_of

from .directory import ROLE, built_in_role
from .events import AuditEvent
from .granting import check_permissions, require_covers
from .mesh import SecurityMesh
from .mutations import Context, Plan, aborted, mutate
from .records import Change

__all__ = ["RoleRpcs"]

_CHANGEABLE = ("description", "permissions")


class RoleRpcs:
    """CreateRole, UpdateRole, GetRole, ListRoles and DeleteRole."""

    _mesh: SecurityMesh

    async def CreateRole(
        self, request: pb.CreateRoleRequest, context: Context
    ) -> pb.CreateRoleResponse:
        """Creates a role."""

        def plan() -> Plan:
            wanted = request.role
            if self._mesh.directory.role(wanted.role_id) is not None:
                raise MeshError(
                    grpc.StatusCode.ALREADY_EXISTS,
                    "ROLE_EXISTS",
                    f"There is a role {wanted.role_id} already. Take another name.",
                )
            role = pb.Role(
                role_id=wanted.role_id,
                description=wanted.description,
                permissions=wanted.permissions,
            )
            check_permissions(role.permissions, "role.permissions")
            require_covers(current_identity(), role.permissions, role.role_id)
            role.create_time.GetCurrentTime()
            role.update_time.CopyFrom(role.create_time)
            return _plan(role, 0, pb.CreateRoleResponse(role=role), "role.created")

        answer, revision, _ = await mutate(
            self._mesh, request, context, pb.CreateRoleResponse, plan
        )
        answer.role.revision = revision
        return answer

    async def UpdateRole(
        self, request: pb.UpdateRoleRequest, context: Context
    ) -> pb.UpdateRoleResponse:
        """Changes a role."""
        for index, path in enumerate(request.update_mask.paths):
            if path not in _CHANGEABLE:
                raise invalid_argument(
                    f"update_mask.paths[{index}]",
                    f"{path} is none of the fields that can be changed: {', '.join(_CHANGEABLE)}",
                )
        mask = FieldMask(paths=request.update_mask.paths or _CHANGEABLE)

        def plan() -> Plan:
            present = self._changeable_role(request.role.role_id)
            if request.expected_revision not in (0, present.revision):
                raise aborted(
                    f"{present.role_id} has revision {present.revision} by now. "
                    "Read it again, then change that."
                )
            role = pb.Role()
            role.CopyFrom(present)
            mask.MergeMessage(
                request.role, role, replace_message_field=True, replace_repeated_field=True
            )
            check_permissions(role.permissions, "role.permissions")
            gained = set(role.permissions) - set(present.permissions)
            require_covers(current_identity(), gained, role.role_id)
            role.update_time.GetCurrentTime()
            return _plan(role, present.revision, pb.UpdateRoleResponse(role=role), "role.updated")

        answer, revision, _ = await mutate(
            self._mesh, request, context, pb.UpdateRoleResponse, plan
        )
        answer.role.revision = revision
        return answer

    async def DeleteRole(
        self, request: pb.DeleteRoleRequest, context: Context
    ) -> pb.DeleteRoleResponse:
        """Deletes a role."""

        def plan() -> Plan:
            present = self._changeable_role(request.role_id)
            return Plan(
                [Change(ROLE, present.role_id, present.revision, None)],
                pb.DeleteRoleResponse(),
                AuditEvent("role.deleted", resource=f"role/{present.role_id}"),
            )

        answer, _, _ = await mutate(self._mesh, request, context, pb.DeleteRoleResponse, plan)
        return answer

    async def GetRole(self, request: pb.GetRoleRequest, context: Context) -> pb.GetRoleResponse:
        """Describes a role."""
        return pb.GetRoleResponse(role=self._role(request.role_id))

    async def ListRoles(
        self, request: pb.ListRolesRequest, context: Context
    ) -> pb.ListRolesResponse:
        """Lists a page of roles."""
        page, token = page_of(self._mesh.directory.roles(), lambda role: role.role_id, request)
        return pb.ListRolesResponse(roles=page, next_page_token=token)

    def _role(self, role_id: str) -> pb.Role:
        role = self._mesh.directory.role(role_id)
        if role is None:
            raise not_found(
                f"There is no role {role_id}.", reason="ROLE_NOT_FOUND", role_id=role_id
            )
        return role

    def _changeable_role(self, role_id: str) -> pb.Role:
        if built_in_role(role_id) is not None:
            raise failed_precondition(
                f"The role {role_id} comes with bxmesh and stays as it is. Make one of your own.",
                reason="ROLE_BUILT_IN",
                subject=role_id,
            )
        return self._role(role_id)


def _plan(
    role: pb.Role, known: int, answer: pb.CreateRoleResponse | pb.UpdateRoleResponse, event: str
) -> Plan:
    stored = pb.Role()
    stored.CopyFrom(role)
    stored.ClearField("revision")
    return Plan(
        [Change(ROLE, role.role_id, known, stored.SerializeToString())],
        answer,
        AuditEvent(
            event,
            resource=f"role/{role.role_id}",
            details={"permissions": ",".join(sorted(role.permissions))},
        ),
    )
