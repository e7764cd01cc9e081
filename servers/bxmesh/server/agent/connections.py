"""Which agents are connected to this server."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bxmesh.server.activity import OFF, Activity
from bxmesh.work.v1 import work_pb2

if TYPE_CHECKING:
    from bxmesh.server.agent.connection import Connection

__all__ = ["Connections"]


class Connections:
    """The connections of this server, by agent; hands them what arrives for their agents."""

    def __init__(self, activity: Activity = OFF) -> None:
        self._activity = activity
        self._by_agent: defaultdict[str, list[Connection]] = defaultdict(list)
        self._arriving: list[Connection] = []
        self._staying: set[asyncio.Future[None]] = set()
        self._turn = 0

    async def all_gone(self, seconds: float) -> None:
        """Waits until all are done with their farewells, but not for longer."""
        if self._staying:
            await asyncio.wait(self._staying, timeout=seconds)

    def __iter__(self) -> Iterator[Connection]:
        return (each for group in tuple(self._by_agent.values()) for each in tuple(group))

    def of(self, agent_id: str) -> tuple[Connection, ...]:
        """The connections of an agent."""
        return tuple(self._by_agent.get(agent_id, ()))

    def expect(self, connection: Connection, gone: asyncio.Future[None]) -> None:
        """Says that one is about to be entered; the future is done when it has left for good."""
        self._staying.add(gone)
        gone.add_done_callback(self._staying.discard)
        self._arriving.append(connection)

    def add(self, connection: Connection) -> None:
        """Takes in one that was expected."""
        self._arriving.remove(connection)
        self._by_agent[connection.agent_id].append(connection)
        self._activity.connected(connection.agent_id, connection.connection_id)

    def remove(self, connection: Connection) -> None:
        """Lets one go, whether or not it was taken in."""
        if connection in self._arriving:
            self._arriving.remove(connection)
            return
        group = self._by_agent[connection.agent_id]
        group.remove(connection)
        self._activity.disconnected(connection.agent_id, connection.connection_id)
        if not group:
            del self._by_agent[connection.agent_id]

    def staying(self, agent_id: str) -> tuple[str, ...]:
        """The names of an agent's connections, of those that arrive too."""
        arriving = (each for each in self._arriving if each.agent_id == agent_id)
        return tuple(each.connection_id for each in (*self.of(agent_id), *arriving))

    def handler_of(self, agent_id: str, message_type: str) -> Connection | None:
        """One of the agent's connections that handles a type, in turn, if possible one that takes
        something; None when none does."""
        fitting = [each for each in self.of(agent_id) if each.handles(message_type)]
        if not fitting:
            return None
        fitting = [each for each in fitting if each.takes] or fitting
        self._turn += 1
        return fitting[self._turn % len(fitting)]

    def deliver_direct(self, message: work_pb2.DirectMessage) -> None:
        """Hands a direct message to one of its agent's connections, at most once."""
        group = self.of(message.agent_id)
        if group:
            self._turn += 1
            start = self._turn % len(group)
            any(each.offer_direct(message.envelope) for each in (*group[start:], *group[:start]))

    def cancel(self, cancellation: work_pb2.Cancellation) -> None:
        """Tells an agent to stop working on an item."""
        for each in self.of(cancellation.agent_id):
            each.cancel(cancellation.item_id, cancellation.reason)

    def withdraw(self, item_id: str) -> None:
        """Tells whoever works on an item that nobody waits for it any more."""
        for each in self:
            each.cancel(item_id, None)
