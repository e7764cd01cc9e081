"""How good the mesh is."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from bxmesh.client.names import EnumNames
from bxmesh.health.v1 import health_pb2 as pb
from bxmesh.server.http.models.base import Told, moment, seconds

__all__ = ["Health", "HealthDetails"]

State = Literal["healthy", "degraded", "unhealthy", "unknown"]
_STATES = EnumNames(pb.HealthState, "HEALTH_STATE_")


class Health(Told):
    """Whether the mesh serves."""

    status: Literal["healthy", "unhealthy"]
    """Whether it does."""


class Component(Told):
    """How good one part of the mesh is."""

    name: str
    """Which."""
    state: State
    """How good."""
    response_time: float
    """How long it took to find out, in seconds."""
    message: str
    """What was found; empty for callers without mesh_operate."""
    remedy: str
    """What to do about it; likewise."""
    details: dict[str, str]
    """Figures, by name; likewise."""


class HealthSummary(Told):
    """Components by their state."""

    total: int
    """All of them."""
    healthy: int
    """Those that are healthy."""
    degraded: int
    """Those that are degraded."""
    unhealthy: int
    """Those that are unhealthy."""
    unknown: int
    """Those of which it could not be found out."""


class HealthDetails(Told):
    """How good the mesh and its components are."""

    state: State
    """The worst of the components."""
    components: list[Component]
    """In the order of their names."""
    summary: HealthSummary
    """How many are how."""
    check_time: datetime | None
    """When it was looked at."""
    uptime: float
    """How long the server has been running, in seconds."""
    version: str
    """The version of the server."""

    @classmethod
    def from_message(cls, message: pb.GetHealthResponse) -> HealthDetails:
        """Returns what a message holds."""
        counts = message.summary
        return cls(
            state=_state(message.state),
            components=[
                Component(
                    name=one.name,
                    state=_state(one.state),
                    response_time=seconds(one.response_time),
                    message=one.message,
                    remedy=one.remedy,
                    details=dict(one.details),
                )
                for one in message.components
            ],
            summary=HealthSummary(
                total=counts.total,
                healthy=counts.healthy,
                degraded=counts.degraded,
                unhealthy=counts.unhealthy,
                unknown=counts.unknown,
            ),
            check_time=moment(message, "check_time"),
            uptime=seconds(message.uptime),
            version=message.version,
        )


def _state(number: int) -> State:
    match _STATES.name(number):
        case "healthy":
            return "healthy"
        case "degraded":
            return "degraded"
        case "unhealthy":
            return "unhealthy"
        case _:
            return "unknown"
