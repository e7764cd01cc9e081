"""What the RPCs of conversations work with."""

from __future__ import annotations

import json
from dataclasses import dataclass

from redis.asyncio import Redis

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive import Archive
from bxmesh.server.conversations.asking import inspected
from bxmesh.server.conversations.events import EventLog
from bxmesh.server.errors import MeshError
from bxmesh.server.interceptors import current_identity
from bxmesh.server.mutations import Mutation
from bxmesh.server.security.circuit_breakers import CircuitBreakers
from bxmesh.server.security.data_loss import DataGuard
from bxmesh.server.streams import WorkQueue
from bxmesh.server.streams.change_bell import ChangeBell

__all__ = ["ConversationMesh"]


@dataclass(frozen=True)
class ConversationMesh:
    """The parts of the mesh that conversations need."""

    redis: Redis
    """Redis."""
    queue: WorkQueue
    """Where rounds wait."""
    log: EventLog
    """What happens."""
    archive: Archive
    """What is kept."""
    bell: ChangeBell
    """Rings when something has happened."""
    data: DataGuard
    """What may be sent."""
    circuits: CircuitBreakers
    """What is not tried for now."""
    most_open: int
    """Conversations of one identity that have not ended."""

    async def seen(self, name: str) -> pb.Conversation:
        """Returns a conversation that the caller sees; raises MeshError NOT_FOUND."""
        return await self.archive.get(name, current_identity())

    def mutation(self, method: str, request_id: str) -> Mutation:
        """Returns what a request id of the caller stands for."""
        return Mutation(self.redis, self.queue.keys, method, current_identity().id, request_id)

    async def require_sendable(self, message: str) -> None:
        """Raises MeshError for a question that the data-loss policy lets nobody send."""
        await inspected(self.data, current_identity().id, pb.Participant(), json.dumps(message))

    async def end(
        self, conversation: pb.Conversation, state: pb.ConversationState.ValueType, error: MeshError
    ) -> None:
        """Ends a conversation from outside. Raises OvertakenError when something was said since."""
        conversation.state = state
        conversation.error.CopyFrom(error.to_status())
        conversation.end_time.GetCurrentTime()
        conversation.update_time.CopyFrom(conversation.end_time)
        conversation.revision += 1
        ended = pb.ConversationEvent(
            conversation_id=conversation.conversation_id,
            revision=conversation.revision,
            event_time=conversation.end_time,
            ended=conversation,
        )
        await self.log.append([ended])
        await self.archive.save(conversation)
        await self.bell.ring(conversation.conversation_id)
