"""An agent at run time: its lease, its connection, its work, from start to stop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from bxmesh.client.agents.capabilities import offered
from bxmesh.client.agents.handlers import Handlers
from bxmesh.client.agents.inbox import Inbox
from bxmesh.client.agents.invoker import Invoker
from bxmesh.client.agents.lease import Heartbeat, Lease
from bxmesh.client.agents.link import Link
from bxmesh.client.agents.message_work import MessageWork
from bxmesh.client.agents.own_state import OwnState
from bxmesh.client.agents.stats import AgentStats
from bxmesh.client.agents.task_work import TaskWork
from bxmesh.client.names import invalid
from bxmesh.registry.v1 import agent_pb2

if TYPE_CHECKING:
    from bxmesh.client.agents.agent import Agent
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["Runtime"]

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 5.0


class Runtime:
    """One run of an agent."""

    def __init__(self, agent: Agent[Any], mesh: AsyncMesh, handlers: Handlers) -> None:
        self.mesh = mesh
        """The mesh that the agent is in."""
        self.stats = AgentStats()
        """What it has done so far."""
        self._agent = agent
        self._state: OwnState[Any] | None = None
        if agent.state_model is not None:
            self._state = OwnState(mesh, agent.agent_id, agent.state_model)
        connection = mesh._connection
        self.stopping = asyncio.Event()
        """Whether it takes no more."""
        self._facts: dict[str, str] = {}
        registration = agent_pb2.RegisterAgentRequest(
            agent_id=agent.agent_id,
            agent_type=agent.agent_type,
            version=agent.version,
            capabilities=[one.to_message() for one in offered(agent.capabilities, handlers)],
            max_concurrent_tasks=agent.concurrency,
            lease_ttl_seconds=agent.lease_seconds,
            definition_id=agent.definition_id,
        )
        self._lease = Lease(connection, registration, self._describe, self.stop)
        invoker = Invoker(agent, handlers, self.stats)
        self._inbox = Inbox(
            MessageWork(agent, connection.signatures, handlers, invoker),
            TaskWork(agent.agent_id, mesh, handlers, invoker),
            self.stats,
            agent.concurrency,
            self._lease.changed,
        )
        self._link = Link(
            connection, agent.agent_id, self._lease, self._inbox, self.stats, agent.concurrency
        )

    @property
    def attached(self) -> asyncio.Event:
        """Whether the agent was ever attached to its mailbox."""
        return self._link.attached

    @property
    def own_state(self) -> OwnState[Any]:
        """What it keeps. Raises InvalidInput for an agent without a model of its state."""
        if self._state is None:
            raise invalid("state", f"{self._agent!r} has no state: say what it is by state_model")
        return self._state

    def stop(self) -> None:
        """Lets what was begun end, and takes no more; `run` returns then."""
        self.stopping.set()
        self._lease.changed()

    async def run(self) -> None:
        """Registers the agent and lets it work until it is stopped."""
        if not await self._registered():
            return
        heart = asyncio.create_task(self._lease.keep())
        try:
            if self._state is not None:
                await self._state.load()
            await self._agent.on_start()
            try:
                await self._work(heart)
            finally:
                await self._agent.on_stop()
        finally:
            await _end(heart)
            await self._lease.give_up("the agent has stopped")

    async def _registered(self) -> bool:
        """Registers the agent, unless it is stopped before a mesh is there."""
        registering = asyncio.create_task(self._lease.register())
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait((registering, stopping), return_when=asyncio.FIRST_COMPLETED)
            if registering.done():
                registering.result()
            return registering.done()
        finally:
            await _end(stopping)
            await _end(registering)

    async def _work(self, heart: asyncio.Task[None]) -> None:
        link = asyncio.create_task(self._link.run())
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait((heart, link, stopping), return_when=asyncio.FIRST_COMPLETED)
            for done in (heart, link):
                if done.done():
                    # Neither ends by itself but by a failure.
                    done.result()
            self._link.drain()
            await asyncio.wait([link], timeout=self._agent.drain_seconds)
            if not link.done():
                self._inbox.abandon()
                await asyncio.wait([link], timeout=_FAREWELL_SECONDS)
            if link.done():
                link.result()
        finally:
            await _end(link)
            await _end(stopping)
            self._inbox.abandon()

    def _describe(self) -> Heartbeat:
        agent, at_work = self._agent, self.stats.in_flight
        self.stats.registrations = self._lease.registrations
        status = "busy" if at_work >= agent.concurrency else "active"
        return Heartbeat(
            status="draining" if self.stopping.is_set() else status,
            load=min(at_work / agent.concurrency, 1.0),
            active_tasks=at_work,
            metadata=self._metadata(),
        )

    def _metadata(self) -> dict[str, str]:
        try:
            facts = {**self._agent.metadata, **self._agent.get_metadata()}
            self._facts = {key: str(value) for key, value in facts.items()}
        except Exception:
            # Of a heartbeat more depends than what it tells.
            _log.exception("%r cannot say its metadata", self._agent)
        return self._facts


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
