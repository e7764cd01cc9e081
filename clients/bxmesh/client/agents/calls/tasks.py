"""The calls on tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Unpack
from uuid import uuid4

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.agents.tasks import (
    TASK_STATES,
    Task,
    TaskOptions,
    TaskState,
    TaskStats,
    spec,
)
from bxmesh.client.agents.times import to_duration, to_timestamp
from bxmesh.client.agents.traces import sending
from bxmesh.client.connection import Connection

__all__ = ["TaskCalls"]


class TaskCalls:
    """Giving work to agents and following it."""

    _connection: Connection

    async def assign_task(
        self,
        task_type: str,
        parameters: object = None,
        *,
        wait_for_agent: bool = False,
        request_id: str = "",
        **options: Unpack[TaskOptions],
    ) -> Task:
        """Gives a task to an agent that can do it, and to another when that one dies.

        Raises FailedPrecondition when nobody offers the capabilities, unless `wait_for_agent`
        keeps the task until somebody does. The same request id gives the same task. Done on behalf
        of another identity, it takes the permissions of both.
        """
        with sending(task_type, options.get("agent_id", "") or "*"):
            request = pb.AssignTaskRequest(
                request_id=request_id or uuid4().hex,
                spec=spec(task_type, parameters, options),
                wait_for_agent=wait_for_agent,
                on_behalf_of=options.get("on_behalf_of", ""),
            )
            response = await self._connection.unary(self._connection.agent.AssignTask, request)
        return Task.from_message(response.task)

    async def task(self, task_id: str) -> Task:
        """Returns a task as it stands. Raises NotFound for an unknown or forgotten one."""
        request = pb.GetTaskRequest(task_id=task_id)
        response = await self._connection.unary(self._connection.agent.GetTask, request)
        return Task.from_message(response.task)

    async def watch_task(
        self, task_id: str, *, after_revision: int = 0
    ) -> AsyncGenerator[Task, None]:
        """Yields a task at every change to its end, over lost connections too.

        Revision 0 begins with the current state. Raises NotFound for an unknown task, Unavailable
        when the mesh stays away.
        """
        request = pb.WatchTaskRequest(task_id=task_id, after_revision=after_revision)
        responses = watch(
            self._connection,
            self._connection.agent.WatchTask,
            request,
            lambda response: response.task.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                yield Task.from_message(response.task)

    async def wait_for_task(self, task_id: str) -> Task:
        """Returns a task when it has ended, however it did."""
        async with aclosing(self.watch_task(task_id)) as changes:
            async for task in changes:
                if task.done:
                    return task
        return await self.task(task_id)

    async def tasks(
        self,
        *,
        states: Iterable[TaskState] = (),
        task_type: str = "",
        agent_id: str = "",
        parent_task_id: str = "",
        labels: Mapping[str, str] | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[Task]:
        """Yields the tasks that fit, newest first; times are those of creation."""
        request = pb.ListTasksRequest(
            states=[TASK_STATES.number(state) for state in states],
            task_type=task_type,
            agent_id=agent_id,
            parent_task_id=parent_task_id,
            labels=labels,
            start_time=to_timestamp(start_time),
            end_time=to_timestamp(end_time),
            page_size=page_size,
        )
        async for response in self._connection.pages(self._connection.agent.ListTasks, request):
            for message in response.tasks:
                yield Task.from_message(message)

    async def cancel_task(
        self, task_id: str, reason: str = "", *, cancel_children: bool = False
    ) -> Task:
        """Cancels a task and returns it; it may still run until its agent has stopped.

        One that has ended is left as it is.
        """
        request = pb.CancelTaskRequest(
            request_id=uuid4().hex, task_id=task_id, reason=reason, cancel_children=cancel_children
        )
        response = await self._connection.unary(self._connection.agent.CancelTask, request)
        return Task.from_message(response.task)

    async def task_stats(self, task_type: str = "", *, period: float | None = None) -> TaskStats:
        """Returns figures about tasks of a type, or all, over so many seconds; an hour."""
        request = pb.GetTaskStatsRequest(task_type=task_type, period=to_duration(period))
        response = await self._connection.unary(self._connection.agent.GetTaskStats, request)
        return TaskStats.from_message(response)
