"""The RPCs on dead letters, histories and the figures of queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from bxmesh.agent.v1 import queue_pb2 as pb
from bxmesh.server.agent.history import replay_messages
from bxmesh.server.agent.letter_mutations import purge_letters, replay_letters
from bxmesh.server.agent.letter_pages import list_letters
from bxmesh.server.agent.letters import Letter
from bxmesh.server.agent.mesh import AgentMesh, caller
from bxmesh.server.agent.queue_figures import queue_stats, require_mailbox
from bxmesh.server.errors import permission_denied
from bxmesh.server.interceptors import current_identity
from bxmesh.server.mutations import Mutation
from bxmesh.server.security.ownership import may_change
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.connection import redis_errors

Context = grpc.aio.ServicerContext[Any, Any]


class QueueRpcs:
    """ListDeadLetters, ReplayDeadLetters, PurgeDeadLetters, ReplayMessages and GetQueueStats."""

    _mesh: AgentMesh

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        """Lists a page of dead letters, newest first."""
        return await list_letters(self._queues, self._mesh.tasks.store, request, await self._sees())

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Context
    ) -> pb.ReplayDeadLettersResponse:
        """Puts dead letters back to where they came from."""
        mutation = self._mutation("ReplayDeadLetters", request.request_id)
        identity_id = caller()

        def tell(letter: Letter) -> None:
            if letter.quarantined:
                self._mesh.data.released(letter.agent_id, identity_id)

        return await replay_letters(
            self._queues, self._mesh.tasks.store, request, mutation, await self._releases(), tell
        )

    async def PurgeDeadLetters(
        self, request: pb.PurgeDeadLettersRequest, context: Context
    ) -> pb.PurgeDeadLettersResponse:
        """Deletes dead letters for good."""
        mutation = self._mutation("PurgeDeadLetters", request.request_id)
        return await purge_letters(
            self._queues, self._mesh.tasks.store, request, mutation, await self._sees()
        )

    async def ReplayMessages(
        self, request: pb.ReplayMessagesRequest, context: Context
    ) -> pb.ReplayMessagesResponse:
        """Delivers what an agent has handled again."""
        await require_mailbox(self._mesh, request.agent_id)
        with redis_errors():
            owner = await self._mesh.agents.owner(request.agent_id)
        if not may_change(current_identity(), owner):
            raise permission_denied(
                f"{request.agent_id} belongs to another identity.", agent_id=request.agent_id
            )
        mutation = self._mutation("ReplayMessages", request.request_id)
        return await replay_messages(self._mesh.mailboxes, request, mutation)

    async def GetQueueStats(
        self, request: pb.GetQueueStatsRequest, context: Context
    ) -> pb.GetQueueStatsResponse:
        """Counts what is in queues."""
        return await queue_stats(self._mesh, request, await self._owned())

    async def _owned(self) -> frozenset[str] | None:
        """The names of agents whose mailboxes the caller sees; None for all."""
        identity = current_identity()
        if may_change(identity):
            return None
        with redis_errors():
            return await self._mesh.agents.owned_by(identity.id)

    async def _sees(self) -> Callable[[Letter], bool]:
        """Says which letters the caller sees: what it sent, and what its agents were sent, unless
        that is held back from them."""
        identity, owned = current_identity(), await self._owned()
        return lambda letter: (
            owned is None
            or letter.sender == identity.id
            or (letter.agent_id in owned and not letter.quarantined)
        )

    async def _releases(self) -> Callable[[Letter], bool]:
        """Says which letters the caller may replay: none that is held back from its recipient,
        unless it may mend what belongs to others."""
        sees, all_of_them = await self._sees(), may_change(current_identity())
        return lambda letter: sees(letter) and (all_of_them or not letter.quarantined)

    @property
    def _queues(self) -> tuple[WorkQueue, ...]:
        return (self._mesh.mailboxes.queue, *self._mesh.work_queues)

    def _mutation(self, method: str, request_id: str) -> Mutation:
        mesh = self._mesh
        return Mutation(mesh.redis, mesh.mailboxes.keys, method, caller(), request_id)
