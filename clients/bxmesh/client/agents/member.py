"""A member of the mesh speaks: the calls of the mesh, as this agent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Unpack

from bxmesh.client.agents.live_agents import AgentTraits, Discovery
from bxmesh.client.agents.messages import (
    BroadcastReceipt,
    DeliveryMode,
    Message,
    MessageOptions,
    Receipt,
)
from bxmesh.client.agents.tasks import Task, TaskOptions

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["Member"]


class Member:
    """Whoever has a name in a mesh; what it sends is sent in that name."""

    agent_id: str
    """The name."""

    @property
    def mesh(self) -> AsyncMesh:
        """The mesh that it is in."""
        raise NotImplementedError

    async def discover(self, *capabilities: str, **which: Unpack[AgentTraits]) -> Discovery:
        """Finds agents that offer all of some capabilities; see AsyncMesh.discover."""
        return await self.mesh.discover(*capabilities, **which)

    async def send(
        self,
        recipient: str,
        message_type: str,
        payload: object = None,
        *,
        mode: DeliveryMode = "durable",
        hold: bool = False,
        **options: Unpack[MessageOptions],
    ) -> Receipt:
        """Sends a message as this agent; see AsyncMesh.send."""
        options.setdefault("sender", self.agent_id)
        return await self.mesh.send(
            recipient, message_type, payload, mode=mode, hold=hold, **options
        )

    async def request(
        self,
        recipient: str,
        message_type: str,
        payload: object = None,
        *,
        mode: DeliveryMode = "durable",
        hold: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        **options: Unpack[MessageOptions],
    ) -> Message:
        """Sends a message as this agent and returns its answer; see AsyncMesh.request."""
        options.setdefault("sender", self.agent_id)
        return await self.mesh.request(
            recipient, message_type, payload, mode=mode, hold=hold, timeout=timeout, **options
        )

    async def broadcast(
        self,
        message_type: str,
        payload: object = None,
        *,
        capabilities: Iterable[str] = (),
        agent_type: str = "",
        include_sender: bool = False,
        mode: DeliveryMode = "durable",
        **options: Unpack[MessageOptions],
    ) -> BroadcastReceipt:
        """Sends a message as this agent to all that fit; see AsyncMesh.broadcast."""
        options.setdefault("sender", self.agent_id)
        return await self.mesh.broadcast(
            message_type,
            payload,
            capabilities=capabilities,
            agent_type=agent_type,
            include_sender=include_sender,
            mode=mode,
            **options,
        )

    async def assign_task(
        self,
        task_type: str,
        parameters: object = None,
        *,
        wait_for_agent: bool = False,
        **options: Unpack[TaskOptions],
    ) -> Task:
        """Gives a task to an agent that can do it; see AsyncMesh.assign_task."""
        return await self.mesh.assign_task(
            task_type, parameters, wait_for_agent=wait_for_agent, **options
        )
