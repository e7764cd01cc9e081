"""A task in the hands of a tool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Unpack

import grpc

from bxmesh.agent.v1.message_pb2 import Payload
from bxmesh.client.agents.task_context import TaskContext
from bxmesh.client.agents.tasks import Task, TaskOptions
from bxmesh.client.blocking import Blocking, Loop, blocking
from bxmesh.client.errors import Cancelled

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["BlockingTaskContext", "ToolContext"]


class ToolContext(TaskContext):
    """A task while a tool works on it; what it asks of others it asks on behalf of whose task it is."""

    def __init__(
        self,
        mesh: AsyncMesh,
        context: TaskContext,
        *,
        threads: Executor,
        progressed: Callable[[float], None],
    ) -> None:
        super().__init__(mesh, context._delivery_id, context.task)
        self.on_cancel_requested = context.on_cancel_requested
        self.mesh = mesh
        """The mesh that the minion is in."""
        self.threads = threads
        """Where functions run that are no coroutines."""
        self._progressed = progressed

    @property
    def payload(self) -> Payload:
        """The input as it travelled."""
        return self.task.message.spec.parameters

    async def progress(self, percent: float, message: str = "", *, text: str = "") -> None:
        """Tells the mesh how far the task is, and the minion's state too."""
        await super().progress(percent, message, text=text)
        self._progressed(percent)

    async def assign(
        self, task_type: str, parameters: object = None, **options: Unpack[TaskOptions]
    ) -> Task:
        """Assigns another task on behalf of this one and of whoever this one is for."""
        if "on_behalf_of" not in options:
            options["on_behalf_of"] = self.task.on_behalf_of
        return await super().assign(task_type, parameters, **options)


class _RunningLoop(Loop):
    """The event loop that runs already, for the threads beside it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()


class BlockingTaskContext(Blocking[ToolContext]):
    """A task while a tool works on it in a thread; see TaskContext."""

    @classmethod
    def of(cls, context: ToolContext) -> BlockingTaskContext:
        """Returns the context for a thread."""
        return cls(_RunningLoop(), context)

    assign = blocking(ToolContext.assign)

    @property
    def task(self) -> Task:
        """The task as it was delivered."""
        return self._target.task

    @property
    def cancel_requested(self) -> bool:
        """Whether nobody wants the task any more: a thread has to see to it by itself."""
        return self._target.cancel_requested

    def progress(self, percent: float, message: str = "") -> None:
        """Tells the mesh how far the task is. Raises Cancelled when nobody wants it any more."""
        if self.cancel_requested:
            raise Cancelled(
                f"task {self._target.id} is not wanted any more",
                code=grpc.StatusCode.CANCELLED,
                reason="TASK_CANCELLED",
            )
        self._loop.run(self._target.progress(percent, message))
