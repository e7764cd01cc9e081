"""The agent service: connections, messages, tasks, state and queues."""

from __future__ import annotations

import asyncio
from types import TracebackType

from bxmesh.server.agent.connect_rpc import ConnectRpc
from bxmesh.server.agent.lease_watch import watch_leases
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.agent.message_rpcs import MessageRpcs
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.streams.tasks import end_tasks

__all__ = ["AgentService"]


class AgentService(ConnectRpc, MessageRpcs):
    """All RPCs of the agent service; an async context manager, within which mailboxes are kept."""

    def __init__(self, mesh: AgentMesh) -> None:
        self._mesh = mesh
        self._streams = OpenStreams()
        self._keepers: list[asyncio.Task[None]] = []
        mesh.bells.on_direct = mesh.connections.deliver_direct
        mesh.bells.on_cancel = mesh.connections.cancel
        mesh.bells.on_withdrawal = mesh.connections.withdraw

    async def __aenter__(self) -> AgentService:
        mesh = self._mesh
        self._keepers = [
            asyncio.create_task(mesh.mailboxes.maintenance.run()),
            asyncio.create_task(watch_leases(mesh)),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drain()
        await end_tasks(*self._keepers)

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()
