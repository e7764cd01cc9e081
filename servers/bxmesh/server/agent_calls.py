"""Giving agents tasks for somebody, and following them to their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
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

        One that has the same request id is found again. When this is cancelled and `unwanted` says
        that it is for good, the task is cancelled too, for that reason. Raises grpc.aio.AioRpcError.
        """
        answer = await self._agents.AssignTask(request, metadata=self._metadata)
        task: task_pb2.Task = answer.task
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

    async def _followed(self, task: task_pb2.Task, hear: Hear) -> task_pb2.Task:
        watch = self._agents.WatchTask(
            task_pb2.WatchTaskRequest(task_id=task.task_id, after_revision=task.revision),
            metadata=self._metadata,
        )
        try:
            async for change in watch:
                task = change.task
                await hear(task)
                if task.state in _DONE:
                    break
            else:
                answer = await self._agents.GetTask(
                    task_pb2.GetTaskRequest(task_id=task.task_id), metadata=self._metadata
                )
                task = answer.task
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.OUT_OF_RANGE:
                raise
            # It changes faster than it is followed: what was missed matters to nobody any more.
            answer = await self._agents.GetTask(
                task_pb2.GetTaskRequest(task_id=task.task_id), metadata=self._metadata
            )
            task = answer.task
        finally:
            watch.cancel()
        return task

    async def _cancel(self, task_id: str, why: str) -> None:
        await self._agents.CancelTask(
            task_pb2.CancelTaskRequest(task_id=task_id, reason=why, cancel_children=True),
            metadata=self._metadata,
            timeout=_FAREWELL_SECONDS,
        )


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
