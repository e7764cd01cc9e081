"""An agent of the mesh that does what a definition says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from bxmesh.client.agents.agent import Agent
from bxmesh.client.agents.capabilities import Capability
from bxmesh.client.agents.failures import HandlerTimeout
from bxmesh.client.agents.handlers import on, task
from bxmesh.client.agents.messages import ERROR_REPORT, Message
from bxmesh.client.agents.task_context import TaskContext
from bxmesh.client.host.behaviours import Behaviour
from bxmesh.client.host.failures import RETRIES
from bxmesh.client.host.figures import AgentFigures
from bxmesh.client.host.schemas import require_fit
from bxmesh.client.host.work import Reply, Work, plain, sender_identity
from bxmesh.client.mesh import AsyncMesh
from bxmesh.registry.v1 import agent_pb2

__all__ = ["DefinedAgent"]


@dataclass(frozen=True)
class _Offered(Capability):
    """A capability as its definition has it."""

    message: agent_pb2.Capability | None = None

    def to_message(self) -> agent_pb2.Capability:
        """Returns the capability as a message."""
        return self.message or super().to_message()


class DefinedAgent(Agent):
    """Does its work by a behaviour, which may be replaced while it runs."""

    agent_type = "definition"

    def __init__(
        self,
        agent_id: str,
        behaviour: Behaviour,
        figures: AgentFigures,
        *,
        host: str,
        timeout: float,
        lease_seconds: int,
    ) -> None:
        definition = behaviour.definition
        super().__init__(
            agent_id,
            capabilities=[_Offered(one.name, message=one) for one in definition.capabilities],
            metadata={"host": host},
            concurrency=definition.limits.max_concurrent_tasks or 1,
            lease_seconds=lease_seconds,
        )
        self.definition_id = definition.definition_id
        self.figures = figures
        """What it has done."""
        self._behaviour = behaviour
        self._timeout = timeout
        self._leaving = False
        figures.version = definition.version

    def take_up(self, behaviour: Behaviour) -> bool:
        """Does what comes from now on by another version; False when that must register anew."""
        old, new = self._behaviour.definition, behaviour.definition
        if list(old.capabilities) != list(new.capabilities) or (
            (old.limits.max_concurrent_tasks or 1) != (new.limits.max_concurrent_tasks or 1)
        ):
            return False
        self._behaviour = behaviour
        self.figures.version = new.version
        return True

    def leave(self, seconds: float) -> None:
        """Stops: what was begun may take so long, and the rest comes again elsewhere."""
        self._leaving = True
        self.drain_seconds = seconds
        self.stop()

    async def serve(self, mesh: AsyncMesh) -> None:
        """Runs until it has left."""
        with self._begun(mesh) as runtime:
            await runtime.run()

    @property
    def timeout(self) -> float:
        """The seconds that one piece of work may take."""
        return self._behaviour.definition.limits.timeout.ToNanoseconds() / 1e9 or self._timeout

    def get_metadata(self) -> dict[str, str]:
        """Returns the figures."""
        return self.figures.facts()

    @on("*", retry=RETRIES)
    async def handle(self, message: Message) -> None:
        """Answers a message by its definition."""
        if message.type == ERROR_REPORT:
            await super().on_message(message)
            return

        async def work() -> Work:
            return Work(
                message.type,
                plain(message.payload),
                await sender_identity(self.mesh, message),
                message.id,
                message.attempt,
                self.figures,
                comes_again=lambda: self._leaving,
            )

        reply = await self._done("messages", message.type, work)
        if reply.type:
            await message.reply(reply.type, reply.value)

    @task("*")
    async def do(self, context: TaskContext) -> object:
        """Does a task by its definition."""

        async def work() -> Work:
            return Work(
                context.type,
                plain(context.parameters),
                context.task.on_behalf_of,
                context.id,
                context.attempt,
                self.figures,
                context.task,
                tell=lambda text: context.progress(0.0, text=text),
                comes_again=lambda: self._leaving,
            )

        return (await self._done("tasks", context.type, work)).value

    async def _done(
        self,
        kind: Literal["messages", "tasks"],
        work_type: str,
        work_of: Callable[[], Awaitable[Work]],
    ) -> Reply:
        # What was begun ends by the version that it was begun by.
        behaviour, seconds = self._behaviour, self.timeout
        figures, began, ok = self.figures, time.monotonic(), False
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                work = await work_of()
                schema = behaviour.input_schema(work_type)
                require_fit(work.payload, schema, len(str(work.payload)))
                reply = await behaviour.answer(work)
            ok = True
            return reply
        except TimeoutError as error:
            if limit.expired():
                raise HandlerTimeout(work_type, seconds) from error
            raise
        finally:
            setattr(figures, kind, getattr(figures, kind) + 1)
            figures.failed += not ok
            figures.seconds += time.monotonic() - began
