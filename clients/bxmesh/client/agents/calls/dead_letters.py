"""The calls on dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Unpack
from uuid import uuid4

from bxmesh.agent.v1 import queue_pb2 as pb
from bxmesh.client.agents.dead_letters import DeadLetter, DeadLetterFilter, to_filter
from bxmesh.client.agents.queues import Replay
from bxmesh.client.connection import Connection

__all__ = ["DeadLetterCalls"]


class DeadLetterCalls:
    """What could not be handled."""

    _connection: Connection

    async def dead_letters(
        self, *, page_size: int = 0, **which: Unpack[DeadLetterFilter]
    ) -> AsyncIterator[DeadLetter]:
        """Yields the dead letters that fit, newest first."""
        request = pb.ListDeadLettersRequest(filter=to_filter(which), page_size=page_size)
        async for response in self._connection.pages(
            self._connection.agent.ListDeadLetters, request
        ):
            for message in response.dead_letters:
                yield DeadLetter.from_message(message)

    async def replay_dead_letters(
        self, *, limit: int = 0, **which: Unpack[DeadLetterFilter]
    ) -> Replay:
        """Puts dead letters back to where they came from, oldest first, with no attempts counted.

        At most `limit`, 1000 by default. Raises InvalidInput when nothing says which.
        """
        request = pb.ReplayDeadLettersRequest(
            request_id=uuid4().hex, filter=to_filter(which), limit=limit
        )
        response = await self._connection.unary(self._connection.agent.ReplayDeadLetters, request)
        return Replay(response.replayed, remaining=response.remaining)

    async def purge_dead_letters(self, **which: Unpack[DeadLetterFilter]) -> int:
        """Deletes dead letters for good and returns how many.

        Raises InvalidInput when nothing says which.
        """
        request = pb.PurgeDeadLettersRequest(request_id=uuid4().hex, filter=to_filter(which))
        response = await self._connection.unary(self._connection.agent.PurgeDeadLetters, request)
        purged: int = response.purged
        return purged
