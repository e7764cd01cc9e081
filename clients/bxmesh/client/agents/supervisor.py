"""A supervisor gives tasks to agents and gathers what comes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sized
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload
from uuid import uuid4

from bxmesh.client.agents.assignment import Assignment
from bxmesh.client.agents.backoff import Backoff
from bxmesh.client.agents.live_agents import AgentTraits
from bxmesh.client.agents.minion_info import MinionEvent, MinionInfo, list_minions, watch_minions
from bxmesh.client.agents.tasks import Task, TaskOptions
from bxmesh.client.agents.work_progress import WorkProgress
from bxmesh.client.errors import BxmeshError, ResourceExhausted, Unavailable
from bxmesh.client.names import invalid

if TYPE_CHECKING:
    from bxmesh.client.mesh import AsyncMesh

__all__ = ["Supervisor"]

R = TypeVar("R")
Failures = Literal["raise", "collect"]
OnProgress = Callable[[WorkProgress], object]


class Supervisor:
    """Hands out work over a mesh; it outlives restarts of servers and agents.

    A result is what the task's agent returned: a model's instance where `result` names a pydantic
    model or protobuf message, otherwise parsed JSON or a protobuf message.
    """

    def __init__(self, mesh: AsyncMesh) -> None:
        self._mesh = mesh

    @overload
    async def assign(
        self,
        task_type: str,
        parameters: object = None,
        *,
        result: type[R],
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> Assignment[R]: ...

    @overload
    async def assign(
        self,
        task_type: str,
        parameters: object = None,
        *,
        result: None = None,
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> Assignment[Any]: ...

    async def assign(
        self,
        task_type: str,
        parameters: object = None,
        *,
        result: type[Any] | None = None,
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> Assignment[Any]:
        """Assigns a task; await what is returned for its result. See AsyncMesh.assign_task.

        Waits while the mesh is away or full. Raises FailedPrecondition when nobody can do it and
        `wait_for_agent` is false.
        """
        request_id = uuid4().hex
        backoff = Backoff(self._mesh._connection.timeouts.reconnect, f"a task {task_type}")
        while True:
            try:
                task = await self._mesh.assign_task(
                    task_type,
                    parameters,
                    wait_for_agent=wait_for_agent,
                    request_id=request_id,
                    **options,
                )
                return Assignment(self._mesh, task, result)
            except (Unavailable, ResourceExhausted) as error:
                await backoff.wait(error)

    @overload
    async def gather(
        self,
        assignments: Iterable[Assignment[R]],
        *,
        failures: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
    ) -> list[R]: ...

    @overload
    async def gather(
        self,
        assignments: Iterable[Assignment[R]],
        *,
        failures: Literal["collect"],
        on_progress: OnProgress | None = None,
    ) -> list[R | BxmeshError]: ...

    async def gather(
        self,
        assignments: Iterable[Assignment[Any]],
        *,
        failures: Failures = "raise",
        on_progress: OnProgress | None = None,
    ) -> list[Any]:
        """Returns the results of tasks in their order.

        The first failure is raised and cancels the other tasks, or failures stand in the places of
        the results: TaskFailed with the task, PayloadMismatch for a result that is none of the model.
        """
        works = list(assignments)

        async def itself(assignment: Assignment[Any]) -> Assignment[Any]:
            return assignment

        return await self._all(
            works, itself, concurrency=max(len(works), 1), failures=failures, tell=on_progress
        )

    @overload
    async def map(
        self,
        task_type: str,
        parameters: Iterable[object],
        *,
        result: type[R],
        concurrency: int = 32,
        failures: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> list[R]: ...

    @overload
    async def map(
        self,
        task_type: str,
        parameters: Iterable[object],
        *,
        result: type[R],
        concurrency: int = 32,
        failures: Literal["collect"],
        on_progress: OnProgress | None = None,
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> list[R | BxmeshError]: ...

    @overload
    async def map(
        self,
        task_type: str,
        parameters: Iterable[object],
        *,
        result: None = None,
        concurrency: int = 32,
        failures: Failures = "raise",
        on_progress: OnProgress | None = None,
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> list[Any]: ...

    async def map(
        self,
        task_type: str,
        parameters: Iterable[object],
        *,
        result: type[Any] | None = None,
        concurrency: int = 32,
        failures: Failures = "raise",
        on_progress: OnProgress | None = None,
        wait_for_agent: bool = True,
        **options: Unpack[TaskOptions],
    ) -> list[Any]:
        """Does one task for each of many parameters and returns the results in their order.

        At most `concurrency` tasks are assigned at a time; parameters are taken as they are needed.
        Tasks that nobody can do yet wait for an agent, unless `wait_for_agent` is false.
        Failures are raised or collected as in `gather`. Whatever ends it early, also a cancellation,
        cancels the tasks that have not ended.
        """

        async def assign(one: object) -> Assignment[Any]:
            return await self.assign(
                task_type, one, result=result, wait_for_agent=wait_for_agent, **options
            )

        return await self._all(
            parameters, assign, concurrency=concurrency, failures=failures, tell=on_progress
        )

    async def minions(self, *capabilities: str, **which: Unpack[AgentTraits]) -> list[MinionInfo]:
        """Returns the live minions that offer all of some capabilities, and what they are at."""
        return await list_minions(self._mesh, capabilities, which)

    def watch_minions(
        self, *capabilities: str, **which: Unpack[AgentTraits]
    ) -> AsyncGenerator[MinionEvent, None]:
        """Yields minions as they join, change and leave until the caller stops, the live ones first.

        Goes on over lost connections. Of several quick changes of one only the last may come.
        """
        return watch_minions(self._mesh, capabilities, which)

    async def _all(
        self,
        items: Iterable[Any],
        assign: Callable[[Any], Any],
        *,
        concurrency: int,
        failures: Failures,
        tell: OnProgress | None,
    ) -> list[Any]:
        if concurrency < 1:
            raise invalid("concurrency", f"{concurrency} at a time is nothing; 1 is the least")
        if failures not in ("raise", "collect"):
            raise invalid("failures", f"failures can be raise or collect, not {failures!r}")
        progress = WorkProgress(len(items) if isinstance(items, Sized) else None)
        following: Iterator[tuple[int, Any]] = enumerate(items)
        results: dict[int, Any] = {}
        open_works: set[Assignment[Any]] = set()

        def changed(task: Task) -> None:
            progress.note(task)
            if tell is not None:
                tell(progress)

        async def work() -> None:
            for index, item in following:
                assignment = await assign(item)
                open_works.add(assignment)
                changed(assignment.task)
                try:
                    results[index] = await assignment.result(changed)
                except BxmeshError as error:
                    if failures == "raise":
                        raise
                    results[index] = error
                open_works.discard(assignment)

        workers = [asyncio.create_task(work()) for _ in range(_bounded(concurrency, items))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            await _cancel(open_works)
        return [results[index] for index in sorted(results)]


async def _cancel(assignments: Iterable[Assignment[Any]]) -> None:
    async def cancel(assignment: Assignment[Any]) -> None:
        with suppress(BxmeshError):
            await assignment.cancel("the supervisor does not wait for it any more")

    await asyncio.gather(*(cancel(one) for one in assignments if not one.task.done))


def _bounded(concurrency: int, items: Iterable[Any]) -> int:
    return min(concurrency, max(len(items), 1)) if isinstance(items, Sized) else concurrency
