"""Giving agents tasks for somebody, and following them to their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_status import rpc_status

from bxmesh.agent.v1 import task_pb2
from bxmesh.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from bxmesh.server.errors import MeshError, internal
from bxmesh.server.security.on_behalf import Metadata

__all__ = ["AgentCalls", "mesh_error", "result_of"]

_DONE = frozenset(
    {
        task_pb2.TASK_STATE_COMPLETED,
        task_pb2.TASK_STATE_FAILED,
        task_pb2.TASK_STATE_CANCELLED,
        task_pb2.TASK_STATE_TIMED_OUT,
    }
)
_FAREWELL_SECONDS = 5.0
_AGAIN_SECONDS = (0.1, 2.0)
# What gRPC says of a server that is not there has no reason of ours.
_AWAY = ("REDIS_UNAVAILABLE", "REDIS_REFUSED", "SERVER_STOPPING", "UNAVAILABLE")

Hear = Callable[[task_pb2.Task], Awaitable[None]]


async def _hear_nothing(task: task_pb2.Task) -> None:
    pass


class AgentCalls:
    """Assigns tasks as somebody whose credentials are in the metadata."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._agents: Any = AgentServiceStub(channel)
        self._metadata = metadata

    async def done(
        self,
        request: task_pb2.AssignTaskRequest,
        *,
        unwanted: Callable[[], bool],
        why: str,
        hear: Hear = _hear_nothing,
    ) -> task_pb2.Task:
        """Assigns a task and returns it at its end, whatever that is; `hear` is told its changes.

        One that has the same request id is found again. That this server stops, or Redis is away for a
        while, is waited for: nobody who was asked has failed. When this is cancelled and `unwanted`
        says that it is for good, the task is cancelled too, for that reason. Raises
        grpc.aio.AioRpcError.
        """
        task = await self._assigned(request)
        try:
            while task.state not in _DONE:
                task = await self._followed(task, hear)
        except asyncio.CancelledError:
            if not unwanted():
                raise
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await asyncio.shield(self._cancel(task.task_id, why))
            raise
        return task

    async def _assigned(self, request: task_pb2.AssignTaskRequest) -> task_pb2.Task:
        while True:
            try:
                answer = await self._agents.AssignTask(request, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                await _wait_if_away(error)
            else:
                task: task_pb2.Task = answer.task
                return task

    async def _followed(self, task: task_pb2.Task, hear: Hear) -> task_pb2.Task:
        """Returns a task at its end, or how it stood when it could not be followed any further."""
        watch = self._agents.WatchTask(
            task_pb2.WatchTaskRequest(task_id=task.task_id, after_revision=task.revision),
            metadata=self._metadata,
        )
        try:
            async for change in watch:
                task = change.task
                await hear(task)
                if task.state in _DONE:
                    return task
            return await self._as_it_stands(task.task_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                # It changes faster than it is followed: what was missed matters to nobody any more.
                return await self._as_it_stands(task.task_id)
            await _wait_if_away(error)
            return task
        finally:
            watch.cancel()

    async def _as_it_stands(self, task_id: str) -> task_pb2.Task:
        answer = await self._agents.GetTask(
            task_pb2.GetTaskRequest(task_id=task_id), metadata=self._metadata
        )
        task: task_pb2.Task = answer.task
        return task

    async def _cancel(self, task_id: str, why: str) -> None:
        await self._agents.CancelTask(
            task_pb2.CancelTaskRequest(task_id=task_id, reason=why, cancel_children=True),
            metadata=self._metadata,
            timeout=_FAREWELL_SECONDS,
        )


async def _wait_if_away(error: grpc.aio.AioRpcError) -> None:
    """Waits a moment when it is the mesh itself that is away; otherwise raises the error."""
    if mesh_error(error).reason not in _AWAY:
        raise error
    await asyncio.sleep(random.uniform(*_AGAIN_SECONDS))


def mesh_error(error: grpc.aio.AioRpcError) -> MeshError:
    """Returns what a call of the mesh raised, with its reason."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is not None:
        return MeshError.from_status(status)
    return MeshError(error.code(), error.code().name, error.details() or "")


def result_of(task: task_pb2.Task) -> Any:
    """Returns the result of a task as JSON has it; raises MeshError INTERNAL (NOT_JSON)."""
    match task.result.WhichOneof("content"):
        case "json":
            try:
                return json.loads(task.result.json.json)
            except (ValueError, RecursionError):
                raise internal("The agent answered what is no JSON.", reason="NOT_JSON") from None
        case "protobuf":
            try:
                return json_format.MessageToDict(
                    task.result.protobuf, preserving_proto_field_name=True
                )
            except (TypeError, ValueError):
                raise internal(
                    f"The agent answered a {task.result.protobuf.TypeName()}, which is not known here.",
                    reason="NOT_JSON",
                ) from None
    return None
