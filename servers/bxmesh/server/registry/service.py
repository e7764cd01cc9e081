"""RegistryService: the live agents, for callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import grpc
from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2, discovery_pb2
from bxmesh.server import agent_selection as selection
from bxmesh.server.errors import MeshError, deadline_exceeded, invalid_argument, permission_denied
from bxmesh.server.interceptors import current_identity
from bxmesh.server.live_agents import LiveAgents
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.pages import page_of
from bxmesh.server.registry import heartbeat
from bxmesh.server.registry.feed import Feed
from bxmesh.server.registry.statistics import registry_stats
from bxmesh.server.registry.watch import follow
from bxmesh.server.security.permissions import capability_permission
from bxmesh.server.streams.connection import redis_errors

__all__ = ["RegistryService"]

Context = grpc.aio.ServicerContext[Any, Any]

_MOST_FOUND = 100
_LONGEST_LEASE_SECONDS = 3600


class RegistryService:
    """The RPCs on live agents; an async context manager, within which leases end on time."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: int = 30,
        most_agents: int = 10_000,
        slow_consumer_seconds: float = 30.0,
        is_identity: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Takes the lease of agents that ask for none, how many there may be, how long a watch
        waits for a caller that does not read, and what says whether an identity has a name: agents
        of others must not pass for it."""
        self._is_identity = is_identity
        self._agents = LiveAgents(redis, most_agents)
        self._feed = Feed(redis, self._agents)
        self._streams = OpenStreams()
        self._lease_seconds = lease_seconds
        self._slow_consumer_seconds = slow_consumer_seconds

    async def __aenter__(self) -> RegistryService:
        self._feed.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drain()
        await self._feed.stop()

    def drain(self) -> None:
        """Ends open streams with UNAVAILABLE (SERVER_STOPPING) and takes no more."""
        self._streams.end()

    async def RegisterAgent(
        self, request: agent_pb2.RegisterAgentRequest, context: Context
    ) -> agent_pb2.RegisterAgentResponse:
        """Brings an agent into the mesh."""
        identity = current_identity()
        names = [capability.name for capability in request.capabilities]
        if names:
            identity.require("task_execute", *map(capability_permission, names))
        if request.agent_id != identity.id and self._is_identity(request.agent_id):
            raise MeshError(
                grpc.StatusCode.ALREADY_EXISTS,
                "AGENT_EXISTS",
                f"{request.agent_id} is the name of an identity. Take another name.",
                metadata={"agent_id": request.agent_id},
            )
        for index, name in enumerate(names):
            if name in names[:index]:
                raise invalid_argument(f"capabilities[{index}].name", f"{name} is there twice")
        agent = agent_pb2.Agent(
            agent_id=request.agent_id,
            agent_type=request.agent_type,
            version=request.version,
            capabilities=request.capabilities,
            metadata=request.metadata,
            max_concurrent_tasks=request.max_concurrent_tasks or 1,
            status=request.status or agent_pb2.AGENT_STATUS_ACTIVE,
            lease_ttl_seconds=request.lease_ttl_seconds or self._lease_seconds,
            identity=identity.id,
            definition_id=request.definition_id,
        )
        agent.register_time.GetCurrentTime()
        with redis_errors():
            registration = await self._agents.admit(
                agent, agent.lease_ttl_seconds, request.request_id
            )
        return agent_pb2.RegisterAgentResponse(
            lease_id=registration.lease_id,
            lease_ttl_seconds=registration.agent.lease_ttl_seconds,
            agent=registration.agent,
        )

    async def KeepAlive(
        self, request_iterator: AsyncIterator[agent_pb2.KeepAliveRequest], context: Context
    ) -> None:
        """Renews leases."""
        known: dict[str, agent_pb2.Agent] = {}
        async with self._streams.stream(), _limit() as limit:
            async for request in request_iterator:
                await context.write(await self._renew(request, known))
                limit.reschedule(asyncio.get_running_loop().time() + _LONGEST_LEASE_SECONDS)

    async def _renew(
        self, request: agent_pb2.KeepAliveRequest, known: dict[str, agent_pb2.Agent]
    ) -> agent_pb2.KeepAliveResponse:
        response = agent_pb2.KeepAliveResponse(lease_id=request.lease_id)
        if request.HasField("send_time"):
            response.send_time.CopyFrom(request.send_time)
        with redis_errors():
            agent = await self._agents.renew(
                request.lease_id,
                lambda agent: heartbeat.apply(request, agent),
                known.pop(request.lease_id, None),
            )
        if agent is not None:
            known[request.lease_id] = agent
            response.lease_ttl_seconds = agent.lease_ttl_seconds
            response.revision = agent.revision
        return response

    async def DeregisterAgent(
        self, request: agent_pb2.DeregisterAgentRequest, context: Context
    ) -> agent_pb2.DeregisterAgentResponse:
        """Takes an agent out of the mesh."""
        identity = current_identity()
        if not request.lease_id and not identity.may("registry_write"):
            raise permission_denied(
                f"{identity.id} may only deregister agents whose lease_id it gives."
            )
        with redis_errors():
            departure = await self._agents.remove(
                request.agent_id,
                request.lease_id,
                request.reason,
                identity=identity.id,
                request_id=request.request_id,
            )
        return agent_pb2.DeregisterAgentResponse(agent=departure.agent, revision=departure.revision)

    async def GetAgent(
        self, request: agent_pb2.GetAgentRequest, context: Context
    ) -> agent_pb2.GetAgentResponse:
        """Describes a live agent."""
        with redis_errors():
            return agent_pb2.GetAgentResponse(agent=await self._agents.get(request.agent_id))

    async def ListAgents(
        self, request: agent_pb2.ListAgentsRequest, context: Context
    ) -> agent_pb2.ListAgentsResponse:
        """Lists a page of live agents."""
        with redis_errors():
            snapshot = await self._agents.snapshot()
        found = [agent for agent in snapshot.agents if selection.fits(agent, request.filter)]
        page, token = page_of(found, lambda agent: agent.agent_id, request)
        return agent_pb2.ListAgentsResponse(
            agents=page, next_page_token=token, revision=snapshot.revision
        )

    async def DiscoverAgents(
        self, request: discovery_pb2.DiscoverAgentsRequest, context: Context
    ) -> discovery_pb2.DiscoverAgentsResponse:
        """Finds agents, the one with most free capacity first."""
        with redis_errors():
            snapshot = await self._agents.snapshot()
        found = selection.best_first(snapshot.agents, request.filter)
        return discovery_pb2.DiscoverAgentsResponse(
            agents=found[: request.max_agents or _MOST_FOUND],
            total_size=len(found),
            missing_capabilities=selection.missing_capabilities(snapshot.agents, request.filter),
            revision=snapshot.revision,
        )

    async def SelectAgent(
        self, request: discovery_pb2.SelectAgentRequest, context: Context
    ) -> discovery_pb2.SelectAgentResponse:
        """Chooses one agent."""
        with redis_errors():
            snapshot = await self._agents.snapshot()
        agent, sticky = selection.select(
            snapshot.agents, request.filter, request.sticky_key, request.exclude_agent_ids
        )
        return discovery_pb2.SelectAgentResponse(agent=agent, sticky=sticky)

    async def WatchAgents(
        self, request: discovery_pb2.WatchAgentsRequest, context: Context
    ) -> None:
        """Follows the changes until the caller cancels."""
        async with self._streams.stream():
            await follow(
                self._agents, self._feed, request, context.write, self._slow_consumer_seconds
            )

    async def GetRegistryStats(
        self, request: discovery_pb2.GetRegistryStatsRequest, context: Context
    ) -> discovery_pb2.GetRegistryStatsResponse:
        """Counts agents."""
        with redis_errors():
            snapshot = await self._agents.snapshot()
        stats = registry_stats(
            [agent for agent in snapshot.agents if selection.fits(agent, request.filter)]
        )
        stats.revision = snapshot.revision
        stats.expired_leases = snapshot.expired_leases
        return stats


@contextlib.asynccontextmanager
async def _limit() -> AsyncIterator[asyncio.Timeout]:
    limit = asyncio.timeout(_LONGEST_LEASE_SECONDS)
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise deadline_exceeded(
            "No heartbeat has come for longer than any lease lasts.", reason="KEEP_ALIVE_IDLE"
        ) from None
