"""The calls on live agents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Unpack

from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.agents.live_agents import (
    AgentEvent,
    AgentFilter,
    AgentInfo,
    AgentTraits,
    Discovery,
    to_filter,
)
from bxmesh.client.agents.times import to_duration
from bxmesh.client.connection import Connection
from bxmesh.registry.v1 import agent_pb2, discovery_pb2

__all__ = ["LiveAgentCalls"]


class LiveAgentCalls:
    """Who is in the mesh."""

    _connection: Connection

    async def agents(self, **which: Unpack[AgentFilter]) -> list[AgentInfo]:
        """Returns the live agents in the order of their names, the geometry workers among them."""
        stub = self._connection.registry
        request = agent_pb2.ListAgentsRequest(filter=to_filter(which))
        agents: list[AgentInfo] = []
        async for response in self._connection.pages(stub.ListAgents, request):
            agents += map(AgentInfo.from_message, response.agents)
        return agents

    async def agent(self, agent_id: str) -> AgentInfo:
        """Returns a live agent. Raises NotFound for one that is not alive."""
        request = agent_pb2.GetAgentRequest(agent_id=agent_id)
        response = await self._connection.unary(self._connection.registry.GetAgent, request)
        return AgentInfo.from_message(response.agent)

    async def discover(
        self, *capabilities: str, most: int = 100, **which: Unpack[AgentTraits]
    ) -> Discovery:
        """Returns the agents that offer all of some capabilities, most free capacity first.

        Without statuses only active agents are meant. Nothing found is no error.
        """
        request = discovery_pb2.DiscoverAgentsRequest(
            filter=to_filter(which, capabilities), max_agents=most
        )
        response = await self._connection.unary(self._connection.registry.DiscoverAgents, request)
        return Discovery(
            agents=tuple(map(AgentInfo.from_message, response.agents)),
            total=response.total_size,
            missing_capabilities=tuple(response.missing_capabilities),
        )

    async def select_agent(
        self,
        *capabilities: str,
        sticky_key: str = "",
        exclude: Iterable[str] = (),
        **which: Unpack[AgentTraits],
    ) -> AgentInfo:
        """Returns one agent to give work to: by key, or the less loaded of two drawn at random.

        Raises Unavailable when all that fit are busy, NotFound when none fits.
        """
        request = discovery_pb2.SelectAgentRequest(
            filter=to_filter(which, capabilities), sticky_key=sticky_key, exclude_agent_ids=exclude
        )
        response = await self._connection.unary(self._connection.registry.SelectAgent, request)
        return AgentInfo.from_message(response.agent)

    async def watch_agents(
        self,
        *,
        after_revision: int = 0,
        min_interval: float | None = None,
        **which: Unpack[AgentFilter],
    ) -> AsyncGenerator[AgentEvent, None]:
        """Yields joins, changes and leaves until the caller stops, over lost connections too.

        Revision 0 begins with the live agents as joined. Load changes of one agent are
        `min_interval` seconds apart, 1 by default. After a long time away, agents may appear as
        joined again.
        """
        request = discovery_pb2.WatchAgentsRequest(
            filter=to_filter(which),
            after_revision=after_revision,
            min_interval=to_duration(min_interval),
        )
        responses = watch(
            self._connection,
            self._connection.registry.WatchAgents,
            request,
            lambda response: response.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                for event in response.events:
                    yield AgentEvent.from_message(event)
