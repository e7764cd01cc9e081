"""The RPCs on the policy and on refused addresses."""

from __future__ import annotations

from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.errors import not_found
from bxmesh.server.interceptors import current_identity
from bxmesh.server.pages import page_of

from .addresses import IP_BLOCK, address_of, source_of
from .events import AuditEvent
from .mesh import SecurityMesh
from .mutations import Context, Plan, aborted, mutate
from .policy_checks import check_policy
from .policy_difference import policy_difference
from .records import Change

__all__ = ["PolicyRpcs"]

_MOST_PATHS = 20


class PolicyRpcs:
    """ApplyPolicy, GetPolicy, ListPolicyVersions, ListIpBlocks and DeleteIpBlock."""

    _mesh: SecurityMesh

    async def ApplyPolicy(
        self, request: pb.ApplyPolicyRequest, context: Context
    ) -> pb.ApplyPolicyResponse:
        """Replaces the policy, or only shows the difference."""
        policies, address = self._mesh.policies, address_of(context.peer())

        def answer() -> pb.ApplyPolicyResponse:
            present = policies.current
            if request.expected_version not in (0, present.version):
                raise aborted(
                    f"The policy has version {present.version} by now. Look at it, then change that."
                )
            check_policy(request.policy, address)
            version = pb.PolicyVersion(
                version=present.version + 1,
                policy=request.policy,
                identity_id=current_identity().id,
                comment=request.comment,
            )
            version.create_time.GetCurrentTime()
            return pb.ApplyPolicyResponse(
                policy=version, changes=policy_difference(present.policy, request.policy)
            )

        def plan() -> Plan:
            applied = answer()
            paths = [change.path for change in applied.changes]
            return Plan(
                policies.changes(applied.policy),
                applied,
                AuditEvent(
                    "policy.applied",
                    resource=f"policy/{applied.policy.version}",
                    details={"comment": request.comment, "paths": ", ".join(paths[:_MOST_PATHS])},
                ),
            )

        if request.validate_only:
            return answer()
        applied, _, _ = await mutate(self._mesh, request, context, pb.ApplyPolicyResponse, plan)
        return applied

    async def GetPolicy(
        self, request: pb.GetPolicyRequest, context: Context
    ) -> pb.GetPolicyResponse:
        """Holds the policy in force or an older one."""
        policies = self._mesh.policies
        if not request.version:
            return pb.GetPolicyResponse(policy=policies.current)
        version = policies.get(request.version)
        if version is None:
            raise not_found(
                f"There is no policy {request.version}, or it is not kept any more.",
                reason="POLICY_NOT_FOUND",
                version=str(request.version),
            )
        return pb.GetPolicyResponse(policy=version)

    async def ListPolicyVersions(
        self, request: pb.ListPolicyVersionsRequest, context: Context
    ) -> pb.ListPolicyVersionsResponse:
        """Lists a page of policies, newest first."""
        page, token = page_of(
            self._mesh.policies.newest_first(),
            lambda version: f"{version.version:012}",
            request,
            newest_first=True,
        )
        return pb.ListPolicyVersionsResponse(policies=page, next_page_token=token)

    async def ListIpBlocks(
        self, request: pb.ListIpBlocksRequest, context: Context
    ) -> pb.ListIpBlocksResponse:
        """Lists a page of addresses that are refused for a while."""
        page, token = page_of(self._mesh.addresses.blocks(), lambda block: block.address, request)
        return pb.ListIpBlocksResponse(blocks=page, next_page_token=token)

    async def DeleteIpBlock(
        self, request: pb.DeleteIpBlockRequest, context: Context
    ) -> pb.DeleteIpBlockResponse:
        """Admits an address again; for IPv6 the whole network that was refused with it."""
        source = source_of(request.address)

        def plan() -> Plan:
            if self._mesh.addresses.block(source) is None:
                raise not_found(
                    f"{request.address} is not refused for a while.",
                    reason="BLOCK_NOT_FOUND",
                    address=request.address,
                )
            return Plan(
                [Change(IP_BLOCK, source, -1, None)],
                pb.DeleteIpBlockResponse(),
                AuditEvent("ip_block.deleted", resource=f"address/{source}"),
            )

        answer, _, _ = await mutate(self._mesh, request, context, pb.DeleteIpBlockResponse, plan)
        return answer
