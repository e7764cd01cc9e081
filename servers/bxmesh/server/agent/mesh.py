"""What the RPCs of the agent service work with."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from bxmesh.server.activity import OFF, Activity
from bxmesh.server.agent.connections import Connections
from bxmesh.server.agent.directory import Directory
from bxmesh.server.interceptors import current_identity
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.security.data_loss import ALL_PASS, DataGuard
from bxmesh.server.security.delegation import Delegation, nobody_else
from bxmesh.server.security.message_rules import ALL_ALLOWED, MessageRules
from bxmesh.server.security.quotas import UNLIMITED, Quotas
from bxmesh.server.security.signatures import UNVERIFIED, SignatureSource
from bxmesh.server.settings import Settings
from bxmesh.server.streams import WorkClient, WorkQueue
from bxmesh.server.streams.bells import Bells
from bxmesh.server.streams.mailboxes import Mailboxes
from bxmesh.server.tasks import Tasks


@dataclass(frozen=True)
class AgentMesh:
    """The mailboxes, tasks, who is connected here and who lives, as the agent service sees them."""

    settings: Settings
    redis: Redis
    mailboxes: Mailboxes
    bells: Bells
    client: WorkClient
    agents: LiveAgents
    directory: Directory
    connections: Connections
    tasks: Tasks
    work_queues: tuple[WorkQueue, ...] = ()
    """Other queues whose dead letters and figures the service shows."""
    activity: Activity = OFF
    """What is told what becomes of messages."""
    rules: MessageRules = ALL_ALLOWED
    """Who may send what to whom."""
    data: DataGuard = ALL_PASS
    """What must not be sent."""
    signatures: SignatureSource = UNVERIFIED
    """Who signed what."""
    quotas: Quotas = UNLIMITED
    delegation: Delegation = nobody_else
    """How many tasks and messages identities may have."""


def caller() -> str:
    """The name of whoever calls."""
    return current_identity().id
