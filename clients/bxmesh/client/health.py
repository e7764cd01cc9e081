"""The health of the mesh."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from bxmesh.client.connection import Connection
from bxmesh.client.errors import NotFound
from bxmesh.client.names import EnumNames

__all__ = ["check_health"]

_STATES = EnumNames(health_pb2.HealthCheckResponse.ServingStatus, "")
_NAMES = (
    "",
    "bxmesh.geometry.v1.GeometryService",
    "bxmesh.registry.v1.RegistryService",
    "bxmesh.agent.v1.AgentService",
    "bxmesh.agent.v1.FunctionService",
    "bxmesh.agent.v1.ChainService",
    "bxmesh.agent.v1.ConversationService",
    "bxmesh.security.v1.SecurityService",
    "bxmesh.health.v1.HealthService",
    "dependency:redis",
    "dependency:workers",
    "dependency:storage",
    "dependency:database",
)


async def check_health(connection: Connection) -> dict[str, str]:
    """Returns the state of each service and dependency by name; the server's own is empty."""
    stub: Any = health_pb2_grpc.HealthStub(connection.channel)

    async def check(name: str) -> tuple[str, str] | None:
        try:
            response = await connection.unary(
                stub.Check, health_pb2.HealthCheckRequest(service=name)
            )
        except NotFound:
            return None
        return name, _STATES.name(response.status)

    return dict(filter(None, await asyncio.gather(*map(check, _NAMES))))
