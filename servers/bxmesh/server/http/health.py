"""How good the mesh is."""

from __future__ import annotations

from starlette.responses import Response

from bxmesh.health.v1 import health_pb2
from bxmesh.server.http.models.health import Health, HealthDetails
from bxmesh.server.http.operations import Call

__all__ = ["detailed_health", "health"]


async def health(call: Call) -> Response:
    """Says whether the mesh serves; anyone may ask."""
    serves = await call.gateway.link.serves()
    return Response(
        Health(status="healthy" if serves else "unhealthy").model_dump_json(),
        200 if serves else 503,
        media_type="application/json",
    )


async def detailed_health(call: Call) -> HealthDetails:
    """Says how good each component is."""
    answer = await call.mesh.unary(call.mesh.link.health.GetHealth, health_pb2.GetHealthRequest())
    return HealthDetails.from_message(answer)
