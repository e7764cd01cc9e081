"""The live agents of the mesh, and what happens to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypedDict, cast

from bxmesh.client.names import EnumNames
from bxmesh.registry.v1 import agent_pb2 as pb
from bxmesh.registry.v1 import discovery_pb2

__all__ = [
    "AgentEvent",
    "AgentFilter",
    "AgentInfo",
    "AgentStatus",
    "AgentTraits",
    "Discovery",
    "to_filter",
]

AgentStatus = Literal["active", "busy", "draining"]

STATUSES = EnumNames(pb.AgentStatus, "AGENT_STATUS_")
_KINDS = EnumNames(discovery_pb2.AgentEventKind, "AGENT_EVENT_KIND_")
_REASONS = EnumNames(discovery_pb2.LeaveReason, "LEAVE_REASON_")


class AgentTraits(TypedDict, total=False):
    """Which agents are meant. All that is given must hold; nothing picks all."""

    agent_type: str
    """Is of this type."""
    version: str
    """Has exactly this version."""
    metadata: Mapping[str, str]
    """Has all of these with exactly these values."""
    statuses: Iterable[AgentStatus]
    """Has one of these."""


class AgentFilter(AgentTraits, total=False):
    """Which agents are meant, by what they can do too."""

    capabilities: Iterable[str]
    """Offers all of these."""


@dataclass(frozen=True)
class AgentInfo:
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
    register_time: datetime
    """When it registered."""
    identity: str
    """The identity that registered it."""
    definition_id: str
    """The definition it runs; empty for an agent that brings its own code."""
    revision: int
    """The revision of the registry at its last change."""

    @classmethod
    def from_message(cls, message: pb.Agent) -> AgentInfo:
        """Returns the agent that the message describes."""
        return cls(
            agent_id=message.agent_id,
            agent_type=message.agent_type,
            version=message.version,
            capabilities=tuple(capability.name for capability in message.capabilities),
            metadata=dict(message.metadata),
            status=STATUSES.name(message.status),
            current_load=message.current_load,
            active_tasks=message.active_tasks,
            max_concurrent_tasks=message.max_concurrent_tasks,
            heartbeat_time=message.heartbeat_time.ToDatetime(tzinfo=UTC),
            register_time=message.register_time.ToDatetime(tzinfo=UTC),
            identity=message.identity,
            definition_id=message.definition_id,
            revision=message.revision,
        )


@dataclass(frozen=True)
class Discovery:
    """What a search for agents found."""

    agents: tuple[AgentInfo, ...]
    """The agents, the one with most free capacity first."""
    total: int
    """How many there are in all."""
    missing_capabilities: tuple[str, ...]
    """Capabilities asked for that no live agent offers."""


@dataclass(frozen=True)
class AgentEvent:
    """One change of the registry."""

    kind: Literal["joined", "changed", "left"]
    """What happened."""
    agent: AgentInfo
    """The agent after the change; as it last stood when it left."""
    leave_reason: str
    """deregistered, lease_expired, replaced or revoked; unspecified for one that is there."""
    message: str
    """What was said on leaving, for people."""
    event_time: datetime
    """When it happened."""
    revision: int
    """The revision that the change made."""

    @classmethod
    def from_message(cls, message: discovery_pb2.AgentEvent) -> AgentEvent:
        """Returns the event that the message describes."""
        return cls(
            kind=cast(Literal["joined", "changed", "left"], _KINDS.name(message.kind)),
            agent=AgentInfo.from_message(message.agent),
            leave_reason=_REASONS.name(message.leave_reason),
            message=message.message,
            event_time=message.event_time.ToDatetime(tzinfo=UTC),
            revision=message.revision,
        )


def to_filter(
    options: AgentFilter | AgentTraits, capabilities: Iterable[str] = ()
) -> pb.AgentFilter:
    """Returns the filter as a message. InvalidInput for a status that the contract lacks."""
    return pb.AgentFilter(
        capabilities=[*capabilities, *cast(AgentFilter, options).get("capabilities", ())],
        agent_type=options.get("agent_type", ""),
        version=options.get("version", ""),
        metadata=options.get("metadata", {}),
        statuses=[STATUSES.number(status) for status in options.get("statuses", ())],
    )
