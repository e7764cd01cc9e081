"""Who is in the mesh right now: agents under leases, in Redis.

An agent lives as long as its lease. Every change has a revision, and an event under it in a bounded
stream, from which watches resume.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2
from bxmesh.server import live_agent_scripts as scripts
from bxmesh.server.errors import MeshError, failed_precondition, not_found, resource_exhausted
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.scripts import Script

__all__ = [
    "AgentChange",
    "Departure",
    "LiveAgents",
    "Registration",
    "RevisionCompactedError",
    "Snapshot",
    "no_such_agent",
]

_REMEMBER_MS = 3_600_000
# Heartbeats gather for so long, so that those of a thousand agents share their ways to Redis.
_GATHER_SECONDS = 0.025

Update = Callable[[agent_pb2.Agent], bool]
"""Changes an agent; returns whether it did."""


class RevisionCompactedError(Exception):
    """The changes after a revision are not kept any more, or it is of another registry."""


class Registration(NamedTuple):
    """A lease that was granted."""

    lease_id: str
    agent: agent_pb2.Agent


class Departure(NamedTuple):
    """The end of an agent."""

    agent: agent_pb2.Agent
    revision: int


class Snapshot(NamedTuple):
    """All who live, by name, at a revision."""

    agents: list[agent_pb2.Agent]
    revision: int
    expired_leases: int


@dataclass(frozen=True, slots=True)
class AgentChange:
    """One change of the registry."""

    revision: int
    kind: str
    """join, change, deregistered, expired or replaced."""
    agent: agent_pb2.Agent
    """After the change; as it last stood when it is gone."""
    before: agent_pb2.Agent
    """As it stood before; empty for one that joins."""
    message: str
    """What was said on leaving."""
    time_ms: int


class LiveAgents:
    """The agents whose leases hold. Methods raise what Redis raises."""

    def __init__(self, redis: Redis, most_agents: int = 10_000) -> None:
        self._redis = redis
        self._scripts = ScriptBatcher(redis)
        self._renewals = ScriptBatcher(redis, _GATHER_SECONDS)
        self._most_agents = most_agents

    async def register(self, agent: agent_pb2.Agent, lease_seconds: float) -> tuple[str, int]:
        """Enters or replaces an agent; returns the id of its new lease and the revision.

        Raises MeshError like `admit`.
        """
        registration = await self.admit(agent, lease_seconds)
        return registration.lease_id, registration.agent.revision

    async def admit(
        self, agent: agent_pb2.Agent, lease_seconds: float, request_id: str = ""
    ) -> Registration:
        """Enters or replaces an agent of the identity in its record.

        A repeated request id of that identity returns the first answer. Raises MeshError
        ALREADY_EXISTS when another identity has the name, RESOURCE_EXHAUSTED when there are too
        many.
        """
        answer = await self._call(
            scripts.REGISTER,
            agent.agent_id,
            agent.SerializeToString(),
            secrets.token_hex(16),
            int(lease_seconds * 1000),
            agent.identity,
            self._most_agents,
            _REMEMBER_MS if request_id else 0,
            request_key=scripts.request_key(agent.identity, "register", request_id),
        )
        match answer:
            case [-1]:
                raise MeshError(
                    grpc.StatusCode.ALREADY_EXISTS,
                    "AGENT_EXISTS",
                    f"An agent of another identity is or was called {agent.agent_id}. Take another "
                    "name, or have the agent deregistered by whoever has registry_write.",
                    metadata={"agent_id": agent.agent_id},
                )
            case [-2]:
                raise resource_exhausted(
                    f"There are {self._most_agents} agents already.",
                    retry_after=10.0,
                    reason="TOO_MANY_AGENTS",
                    subject="agents",
                )
            case [revision, lease_id, record, beat]:
                return Registration(lease_id.decode(), _agent(record, revision, beat))
        raise AssertionError(answer)

    async def beat(
        self, agent: agent_pb2.Agent, lease_id: str, lease_seconds: float, *, changed: bool = False
    ) -> int | None:
        """Renews a lease with an agent as it is now; returns the revision, None when it is over."""
        revision: int = await self._call(
            scripts.BEAT,
            agent.agent_id,
            lease_id,
            agent.SerializeToString(),
            int(lease_seconds * 1000),
            int(changed),
        )
        return None if revision < 0 else revision

    async def renew(
        self, lease_id: str, update: Update, known: agent_pb2.Agent | None = None
    ) -> agent_pb2.Agent | None:
        """Renews a lease for the agent's own time and updates the agent.

        Returns the agent as it is then, None when the lease is over. To give it again as `known`
        saves a round trip to Redis. Raises what `update` raises.
        """
        agent = known or agent_pb2.Agent()
        while True:
            updated = agent_pb2.Agent()
            updated.CopyFrom(agent)
            changed = bool(agent.revision) and update(updated)
            answer = await self._renewals.call(
                scripts.RENEW,
                scripts.KEYS,
                (
                    lease_id,
                    agent.revision,
                    updated.SerializeToString() if changed else b"",
                    agent.lease_ttl_seconds * 1000,
                ),
            )
            match answer:
                case []:
                    return None
                case [revision]:
                    updated.revision = revision
                    return updated
                case [revision, record]:
                    agent = _agent(record, revision, 0)

    async def leave(self, agent_id: str, lease_id: str = "") -> int | None:
        """Removes an agent; returns the revision, None when it was not there under that lease."""
        try:
            return (await self.remove(agent_id, lease_id)).revision
        except MeshError:
            return None

    async def remove(
        self,
        agent_id: str,
        lease_id: str = "",
        message: str = "",
        *,
        identity: str = "",
        request_id: str = "",
    ) -> Departure:
        """Removes an agent, under any lease when none is given.

        A repeated request id of an identity returns the first answer. Raises MeshError NOT_FOUND,
        or FAILED_PRECONDITION when the lease is another.
        """
        answer = await self._call(
            scripts.LEAVE,
            agent_id,
            lease_id,
            message,
            _REMEMBER_MS if request_id else 0,
            request_key=scripts.request_key(identity, "leave", request_id),
        )
        match answer:
            case [-1]:
                raise no_such_agent(agent_id)
            case [-2]:
                raise failed_precondition(
                    f"{agent_id} has another lease by now; its present process is left alone.",
                    reason="LEASE_MISMATCH",
                    subject=agent_id,
                )
            case [revision, record, last_revision, beat]:
                return Departure(_agent(record, last_revision, beat), revision)
        raise AssertionError(answer)

    async def get(self, agent_id: str) -> agent_pb2.Agent:
        """Returns a live agent; raises MeshError NOT_FOUND."""
        found = await self._call(scripts.GET, agent_id)
        if not found:
            raise no_such_agent(agent_id)
        return _agent(*found)

    async def owner(self, agent_id: str) -> str:
        """Returns to which identity the name of an agent belongs, alive or not; empty for none."""
        owner: Any = await self._redis.hget(scripts.OWNERS, agent_id)
        return owner.decode() if owner else ""

    async def owned_by(self, identity: str) -> frozenset[str]:
        """Returns the names of agents, alive or not, that belong to an identity."""
        owners = await self.owners()
        return frozenset(name for name, owner in owners.items() if owner == identity)

    async def owners(self) -> dict[str, str]:
        """Returns to which identities the names of agents belong, alive or not."""
        owners: Any = await self._redis.hgetall(scripts.OWNERS)
        return {name.decode(): owner.decode() for name, owner in owners.items()}

    async def list(self, capabilities: Sequence[str] = ()) -> tuple[list[agent_pb2.Agent], int]:
        """The agents that live and have all the capabilities, by name, and the revision."""
        snapshot = await self.snapshot()
        wanted = set(capabilities)
        return [
            agent
            for agent in snapshot.agents
            if wanted.issubset(capability.name for capability in agent.capabilities)
        ], snapshot.revision

    async def snapshot(self) -> Snapshot:
        """Returns all agents that live."""
        revision, expired, *rows = await self._call(scripts.LIST)
        agents = [_agent(*row) for row in zip(rows[0::3], rows[1::3], rows[2::3], strict=True)]
        agents.sort(key=lambda agent: agent.agent_id)
        return Snapshot(agents, revision, expired)

    async def any_of(self, definition_id: str) -> bool:
        """Whether an agent lives that is one of a definition's; raises MeshError UNAVAILABLE without
        Redis."""
        with redis_errors():
            snapshot = await self.snapshot()
        return any(agent.definition_id == definition_id for agent in snapshot.agents)

    async def changes(self, after: int, most: int) -> tuple[Sequence[AgentChange], int]:
        """Returns the first changes after a revision, and the revision that they lead to.

        Raises RevisionCompactedError.
        """
        revision, *kept = await self._call(scripts.CHANGES, after, most)
        if not kept:
            raise RevisionCompactedError
        changes = [_change(entry_id, fields) for entry_id, fields in kept[0]]
        return changes, changes[-1].revision if changes else revision

    async def expire(self) -> tuple[int, float | None]:
        """Removes whose lease is over; returns the revision and the seconds until the next ends."""
        revision, next_ms = await self._call(scripts.EXPIRE)
        return revision, None if next_ms < 0 else next_ms / 1000

    async def _call(
        self, script: Script, *arguments: str | bytes | int, request_key: str = ""
    ) -> Any:
        keys = (*scripts.KEYS, request_key) if request_key else scripts.KEYS
        return await self._scripts.call(script, keys, arguments)


def no_such_agent(agent_id: str) -> MeshError:
    """Returns the error for an agent that is not alive."""
    return not_found(
        f"No agent called {agent_id} is alive.", reason="AGENT_NOT_FOUND", agent_id=agent_id
    )


def _agent(record: bytes, revision: int, beat_ms: int) -> agent_pb2.Agent:
    agent = agent_pb2.Agent.FromString(record)
    agent.revision = revision
    agent.heartbeat_time.FromMilliseconds(beat_ms)
    return agent


def _change(entry_id: bytes, fields: Sequence[bytes]) -> AgentChange:
    values = dict(zip(fields[0::2], fields[1::2], strict=True))
    return AgentChange(
        revision=int(entry_id.split(b"-")[0]),
        kind=values[b"kind"].decode(),
        agent=_agent(values[b"record"], int(values[b"revision"]), int(values[b"beat"])),
        before=agent_pb2.Agent.FromString(values[b"before"]),
        message=values[b"message"].decode(),
        time_ms=int(values[b"time"]),
    )
