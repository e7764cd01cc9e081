"""A task in the eyes of who assigned it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from bxmesh.client.agents.task_failures import result_of
from bxmesh.client.agents.tasks import Task

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["Assignment"]

R = TypeVar("R")


class Assignment(Generic[R]):
    """A task that was assigned; await it, or `result()`, for what comes out."""

    def __init__(self, mesh: AsyncMesh, task: Task, model: type[R] | None = None) -> None:
        self.task = task
        """The task as it is known here."""
        self._mesh = mesh
        self._model = model

    def __repr__(self) -> str:
        return f"Assignment({self.task.task_type!r}, id={self.id!r}, {self.task.state})"

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    @property
    def id(self) -> str:
        """The task's name."""
        return self.task.task_id

    async def result(self, on_change: Callable[[Task], object] | None = None) -> R:
        """Returns the result when the task has ended, over lost connections and restarts too.

        The function is called with the task at every change. Raises TaskFailed, or its subclasses
        TaskCancelled and TaskTimedOut, when there is no result; PayloadMismatch when it is none of
        the model; Unavailable when the mesh stays away.
        """
        if not self.task.done:
            changes = self._mesh.watch_task(self.id, after_revision=self.task.revision)
            async with aclosing(changes):
                async for self.task in changes:
                    if on_change is not None:
                        on_change(self.task)
                    if self.task.done:
                        break
        if not self.task.done:
            self.task = await self._mesh.task(self.id)
            if on_change is not None:
                on_change(self.task)
        return cast(R, result_of(self.task, self._model))

    async def cancel(self, reason: str = "", *, cancel_children: bool = True) -> None:
        """Cancels the task, and what was assigned on its behalf; one that has ended stays as it is."""
        self.task = await self._mesh.cancel_task(self.id, reason, cancel_children=cancel_children)
