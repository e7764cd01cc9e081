"""The live agents of the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from bxmesh.client.connection import Connection
from bxmesh.client.names import EnumNames
from bxmesh.registry.v1 import agent_pb2 as pb
from bxmesh.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

__all__ = ["Agent", "list_agents"]

_STATUSES = EnumNames(pb.AgentStatus, "AGENT_STATUS_")


@dataclass(frozen=True)
class Agent:
    """A live member of the mesh."""

    agent_id: str
    """The name."""
    agent_type: str
    """What kind of agent it is, for example geometry.worker."""
    version: str
    """The version of its software."""
    capabilities: tuple[str, ...]
    """What it can do."""
    metadata: dict[str, str]
    """Facts for people."""
    status: str
    """active, busy or draining."""
    current_load: float
    """The part of its capacity in use, 0 to 1."""
    active_tasks: int
    """The tasks it is at."""
    max_concurrent_tasks: int
    """How many tasks it takes at a time."""
    heartbeat_time: datetime
    """When its last heartbeat arrived."""

    @classmethod
    def from_message(cls, message: pb.Agent) -> Agent:
        """Returns the agent that the message describes."""
        return cls(
            agent_id=message.agent_id,
            agent_type=message.agent_type,
            version=message.version,
            capabilities=tuple(capability.name for capability in message.capabilities),
            metadata=dict(message.metadata),
            status=_STATUSES.name(message.status),
            current_load=message.current_load,
            active_tasks=message.active_tasks,
            max_concurrent_tasks=message.max_concurrent_tasks,
            heartbeat_time=message.heartbeat_time.ToDatetime(tzinfo=UTC),
        )


async def list_agents(connection: Connection) -> list[Agent]:
    """Returns all live agents in the order of their names."""
    stub = RegistryServiceStub(connection.channel)
    request = pb.ListAgentsRequest()
    agents: list[Agent] = []
    while True:
        response = await connection.unary(stub.ListAgents, request)
        agents += map(Agent.from_message, response.agents)
        if not response.next_page_token:
            return agents
        request.page_token = response.next_page_token
