"""The RPC on which an agent receives what is for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from bxmesh.agent.v1 import delivery_pb2 as pb
from bxmesh.registry.v1.agent_pb2 import Agent
from bxmesh.server.agent.connection import Connection
from bxmesh.server.agent.mesh import AgentMesh, caller
from bxmesh.server.errors import (
    deadline_exceeded,
    failed_precondition,
    invalid_argument,
    permission_denied,
    resource_exhausted,
)
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.streams.connection import redis_errors

Context = grpc.aio.ServicerContext[Any, Any]

_HELLO_SECONDS = 30.0
# All of them look when something arrives.
_MOST_CONNECTIONS = 128


class ConnectRpc:
    """Connect."""

    _mesh: AgentMesh
    _streams: OpenStreams

    async def Connect(
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: Context
    ) -> None:
        """Attaches an agent to its mailbox until it hangs up."""
        async with self._streams.stream():
            requests = aiter(request_iterator)
            hello = await _hello(requests)
            agent = await self._agent(hello)
            if len(self._mesh.connections.staying(agent.agent_id)) >= _MOST_CONNECTIONS:
                raise resource_exhausted(
                    f"{agent.agent_id} has {_MOST_CONNECTIONS} connections to this server already.",
                    retry_after=5.0,
                    reason="TOO_MANY_CONNECTIONS",
                    subject=f"agent:{agent.agent_id}",
                )
            await Connection(self._mesh, agent, hello, context.write).run(requests)

    async def _agent(self, hello: pb.Hello) -> Agent:
        with redis_errors():
            agent = await self._mesh.agents.renew(hello.lease_id, lambda agent: False)
        if agent is None or agent.agent_id != hello.agent_id:
            raise failed_precondition(
                f"{hello.agent_id} is not registered under this lease (any more): register, then"
                " connect.",
                reason="AGENT_NOT_REGISTERED",
                subject=hello.agent_id,
            )
        if agent.identity != caller():
            raise permission_denied(
                f"{hello.agent_id} belongs to another identity.", agent_id=hello.agent_id
            )
        return agent


async def _hello(requests: AsyncIterator[pb.ConnectRequest]) -> pb.Hello:
    try:
        async with asyncio.timeout(_HELLO_SECONDS):
            first = await anext(requests, None)
    except TimeoutError:
        raise deadline_exceeded("The agent did not say hello.", reason="NO_HELLO") from None
    if first is None or not first.HasField("hello"):
        raise invalid_argument("hello", "comes first.")
    return first.hello
