"""The RPCs of what is kept: get, list, search, export, delete, purge, count."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from bxmesh.agent.v1 import conversation_archive_pb2 as pb
from bxmesh.server.conversations.mesh import ConversationMesh
from bxmesh.server.interceptors import current_identity
from bxmesh.server.security.identities import missing_permission
from bxmesh.server.security.ownership import may_change

__all__ = ["ArchiveRpcs"]

Context = grpc.aio.ServicerContext[Any, Any]

_OPERATE = "mesh_operate"


class ArchiveRpcs:
    """Reads and deletes what was said."""

    def __init__(self, mesh: ConversationMesh) -> None:
        self._mesh = mesh

    async def GetConversation(
        self, request: pb.GetConversationRequest, context: Context
    ) -> pb.GetConversationResponse:
        """Returns a conversation with all that was said."""
        return pb.GetConversationResponse(
            conversation=await self._mesh.seen(request.conversation_id)
        )

    async def ListConversations(
        self, request: pb.ListConversationsRequest, context: Context
    ) -> pb.ListConversationsResponse:
        """Lists conversations, the newest first."""
        found, token = await self._mesh.archive.list(request, current_identity())
        return pb.ListConversationsResponse(conversations=found, next_page_token=token)

    async def SearchConversations(
        self, request: pb.SearchConversationsRequest, context: Context
    ) -> pb.SearchConversationsResponse:
        """Finds what was said."""
        found = await self._mesh.archive.search(request, current_identity())
        return pb.SearchConversationsResponse(
            results=found.results,
            next_page_token=found.next_page_token,
            degraded=found.degraded,
        )

    async def ExportConversations(
        self, request: pb.ExportConversationsRequest, context: Context
    ) -> AsyncIterator[pb.ExportConversationsResponse]:
        """Streams whole conversations, the oldest first."""
        async for one in self._mesh.archive.export(request, current_identity()):
            yield one

    async def DeleteConversation(
        self, request: pb.DeleteConversationRequest, context: Context
    ) -> pb.DeleteConversationResponse:
        """Deletes a conversation from every store."""
        mesh = self._mesh
        mutation = mesh.mutation("DeleteConversation", request.request_id)
        if await mutation.answered(pb.DeleteConversationResponse()) is None:
            await mesh.archive.delete(request.conversation_id, current_identity())
            await mesh.log.forget([request.conversation_id])
            await mutation.settle(pb.DeleteConversationResponse())
        return pb.DeleteConversationResponse()

    async def PurgeConversations(
        self, request: pb.PurgeConversationsRequest, context: Context
    ) -> pb.PurgeConversationsResponse:
        """Deletes old conversations; for operators."""
        identity = current_identity()
        if not may_change(identity):
            raise missing_permission(identity.id, [_OPERATE], "the conversations of others")
        mesh = self._mesh
        mutation = mesh.mutation("PurgeConversations", request.request_id)
        if answer := await mutation.answered(pb.PurgeConversationsResponse()):
            return answer
        return await mutation.settle(
            await mesh.archive.purge(request.filter, validate_only=request.validate_only)
        )

    async def GetConversationStats(
        self, request: pb.GetConversationStatsRequest, context: Context
    ) -> pb.GetConversationStatsResponse:
        """Counts conversations, answers, errors and times."""
        identity = current_identity()
        period = request.period.ToNanoseconds() / 1e9
        figures = await self._mesh.archive.statistics(identity, period)
        if may_change(identity):
            figures.open_circuits.extend(await self._mesh.circuits.open_targets())
        return figures
