"""A task in the hands of the agent that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack
from uuid import uuid4

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.calls import AgentCalls
from bxmesh.client.agents.tasks import Task, TaskOptions
from bxmesh.client.errors import Unavailable

__all__ = ["TaskContext"]

_MOST_CHARACTERS = 1024
_MOST_TEXT = 16384


class TaskContext:
    """A task while its handler works on it."""

    def __init__(self, mesh: AgentCalls, delivery_id: str, task: Task) -> None:
        self.task = task
        """The task as it was delivered."""
        self.cancel_requested = False
        """Whether somebody wants it cancelled. The handler is cancelled then; see asyncio."""
        self._mesh = mesh
        self._delivery_id = delivery_id
        self.on_cancel_requested: Callable[[], None] | None = None
        """What is called when a report hears that the task shall be cancelled."""

    def __repr__(self) -> str:
        return f"TaskContext({self.type!r}, id={self.id!r}, attempt={self.attempt})"

    @property
    def id(self) -> str:
        """The name."""
        return self.task.task_id

    @property
    def type(self) -> str:
        """What kind of task it is."""
        return self.task.task_type

    @property
    def attempt(self) -> int:
        """How often it was given to an agent, from 1. Above 1 it may have been begun before."""
        return self.task.attempts

    @property
    def parameters(self) -> Any:
        """The input: parsed JSON, a protobuf message, or None."""
        return self.task.parameters

    @property
    def labels(self) -> dict[str, str]:
        """What its assigner labelled it with."""
        return self.task.labels

    async def progress(self, percent: float, message: str = "", *, text: str = "") -> None:
        """Tells the mesh how far the task is, 0 to 100 per cent, and what it is at; `text` is what
        has been written of the result since the last time, for those who look on.

        Raises FailedPrecondition when the task is another's by now.
        """
        progress = pb.TaskProgress(
            percent=percent, message=message[:_MOST_CHARACTERS], text=text[:_MOST_TEXT]
        )
        await self.report(progress=progress)

    async def assign(
        self, task_type: str, parameters: object = None, **options: Unpack[TaskOptions]
    ) -> Task:
        """Assigns another task on behalf of this one; see AsyncMesh.assign_task."""
        options["parent_task_id"] = self.id
        return await self._mesh.assign_task(task_type, parameters, **options)

    async def report(self, **report: Any) -> None:
        """Reports progress, a result or an error, for as long as it takes to get through."""
        request = pb.ReportTaskRequest(
            request_id=uuid4().hex, task_id=self.id, delivery_id=self._delivery_id, **report
        )
        connection, backoff = self._mesh._connection, Backoff()
        while True:
            try:
                response = await connection.unary(connection.agent.ReportTask, request)
                break
            except Unavailable as error:
                await backoff.wait(error)
        if response.cancel_requested and not self.cancel_requested:
            self.cancel_requested = True
            if self.on_cancel_requested is not None:
                self.on_cancel_requested()
