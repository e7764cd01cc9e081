"""The calls on mailboxes and queues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from uuid import uuid4

from bxmesh.agent.v1 import queue_pb2 as pb
from bxmesh.client.agents.queues import QueueStats, Replay
from bxmesh.client.agents.times import to_timestamp
from bxmesh.client.connection import Connection
from bxmesh.client.names import invalid

__all__ = ["QueueCalls"]


class QueueCalls:
    """What waits, is in flight, delayed and dead."""

    _connection: Connection

    async def replay_messages(
        self,
        agent_id: str,
        *,
        start_time: datetime | None = None,
        start_entry_id: str = "",
        end_time: datetime | None = None,
        message_types: Iterable[str] = (),
        limit: int = 0,
    ) -> Replay:
        """Delivers messages of a mailbox again, from a time or from an entry on, as far as kept.

        Types are names, or prefixes that end in "*". At most `limit`, 1000 by default. Raises
        InvalidInput without a start, or when the messages are not kept any more.
        """
        if (start_time is None) == (not start_entry_id):
            raise invalid("start", "say from where: start_time or start_entry_id, one of the two")
        request = pb.ReplayMessagesRequest(
            request_id=uuid4().hex,
            agent_id=agent_id,
            start_time=to_timestamp(start_time),
            end_time=to_timestamp(end_time),
            message_types=message_types,
            limit=limit,
        )
        if start_entry_id:
            request.start_entry_id = start_entry_id
        response = await self._connection.unary(self._connection.agent.ReplayMessages, request)
        return Replay(response.replayed, next_entry_id=response.next_entry_id)

    async def queue_stats(
        self, *, agent_id: str = "", capability: str = "", page_size: int = 0
    ) -> AsyncIterator[QueueStats]:
        """Yields figures of an agent's mailbox, of a capability's work, or of all queues by name."""
        request = pb.GetQueueStatsRequest(page_size=page_size)
        if agent_id:
            request.agent_id = agent_id
        elif capability:
            request.capability = capability
        async for response in self._connection.pages(self._connection.agent.GetQueueStats, request):
            for message in response.queues:
                yield QueueStats.from_message(message)
