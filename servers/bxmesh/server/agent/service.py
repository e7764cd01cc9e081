"""The agent service: connections, messages, tasks, state and queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

from redis.asyncio import Redis

from bxmesh.server.activity import OFF, Activity
from bxmesh.server.agent.connect_rpc import ConnectRpc
from bxmesh.server.agent.connections import Connections
from bxmesh.server.agent.directory import Directory
from bxmesh.server.agent.lease_watch import watch_leases
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.agent.message_rpcs import MessageRpcs
from bxmesh.server.agent.queue_rpcs import QueueRpcs
from bxmesh.server.agent.state_rpcs import StateRpcs
from bxmesh.server.agent.task_rpcs import TaskRpcs
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.security.data_loss import ALL_PASS, DataGuard
from bxmesh.server.security.delegation import Delegation, nobody_else
from bxmesh.server.security.message_rules import ALL_ALLOWED, MessageRules
from bxmesh.server.security.quotas import UNLIMITED, Quotas
from bxmesh.server.security.signatures import UNVERIFIED, SignatureSource
from bxmesh.server.settings import Settings
from bxmesh.server.streams import WorkClient, WorkQueue
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.mailboxes import Mailboxes
from bxmesh.server.tasks import Tasks

__all__ = ["AgentService", "agent_service"]


_FAREWELL_SECONDS = 10.0


@asynccontextmanager
async def agent_service(
    settings: Settings,
    redis: Redis,
    tasks: Tasks,
    work_queues: tuple[WorkQueue, ...] = (),
    activity: Activity = OFF,
    rules: MessageRules = ALL_ALLOWED,
    data: DataGuard = ALL_PASS,
    signatures: SignatureSource = UNVERIFIED,
    quotas: Quotas = UNLIMITED,
    delegation: Delegation = nobody_else,
) -> AsyncIterator[AgentService]:
    """A service with all that it needs, within a block."""
    mailboxes = Mailboxes(redis, settings.mailbox_options)
    live = LiveAgents(redis)
    async with WorkClient(redis) as client:
        mesh = AgentMesh(
            settings,
            redis,
            mailboxes,
            tasks.bells,
            client,
            live,
            Directory(live),
            Connections(activity),
            tasks,
            work_queues,
            activity,
            rules,
            data,
            signatures,
            quotas,
            delegation,
        )
        async with AgentService(mesh) as service:
            yield service


class AgentService(ConnectRpc, MessageRpcs, TaskRpcs, StateRpcs, QueueRpcs):
    """All RPCs of the agent service; an async context manager, within which mailboxes are kept."""

    def __init__(self, mesh: AgentMesh) -> None:
        self.mesh = self._mesh = mesh
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
        await self._mesh.connections.all_gone(_FAREWELL_SECONDS)
        await end_tasks(*self._keepers)

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()
