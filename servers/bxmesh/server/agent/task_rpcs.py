"""The RPCs on tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.message import Message

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.server import telemetry
from bxmesh.server.agent.mesh import AgentMesh
from bxmesh.server.errors import MeshError, invalid_argument, permission_denied
from bxmesh.server.interceptors import current_identity
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.security.addresses import address_of
from bxmesh.server.security.delegation import Principals
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change, shared_team
from bxmesh.server.security.permissions import capability_permission
from bxmesh.server.tasks import errors
from bxmesh.server.tasks.listing import list_tasks
from bxmesh.server.tasks.statistics import task_stats
from bxmesh.server.tasks.store import Parent
from bxmesh.server.tasks.visibility import sees_task
from bxmesh.server.tasks.watch import follow

Context = grpc.aio.ServicerContext[Any, Any]

_ASSIGN = "/bxmesh.agent.v1.AgentService/AssignTask"
_MOST_BYTES = 1 << 20
_STOPPED = (pb.TASK_STATE_CANCELLED, pb.TASK_STATE_TIMED_OUT)


class TaskRpcs:
    """AssignTask, ReportTask, GetTask, ListTasks, CancelTask, WatchTask, GetTaskStats."""

    _mesh: AgentMesh
    _streams: OpenStreams

    async def AssignTask(
        self, request: pb.AssignTaskRequest, context: Context
    ) -> pb.AssignTaskResponse:
        """Gives a task to the mesh."""
        identity, spec = current_identity(), request.spec
        bound = {capability_permission(name) for name in spec.required_capabilities}
        needed = sorted(bound - {"task_execute"})
        identity.require(*needed)
        principals = self._mesh.delegation(identity, request.on_behalf_of, ("task_assign", *needed))
        _check_size("spec", spec)
        trace: dict[str, str] = {}
        telemetry.inject(trace)
        quotas, address = self._mesh.quotas, address_of(context.peer())
        with quotas.telling(identity.id, _ASSIGN, address=address):
            record = await self._mesh.tasks.assign(
                spec,
                identity.id,
                on_behalf_of=await self._for_whom(identity, principals, spec.parent_task_id),
                team=shared_team(identity, spec.visibility),
                parent=await self._parent(spec.parent_task_id, identity),
                wait_for_agent=request.wait_for_agent,
                trace_context=trace,
                request_id=request.request_id,
                allowance=quotas.allowance("max_open_tasks", identity.id),
            )
        return pb.AssignTaskResponse(task=record.task())

    async def _for_whom(self, identity: Identity, principals: Principals, parent_id: str) -> str:
        """The identity for which a task is done: nobody may give its agent more rights than it has
        itself by naming another."""
        for other in principals.others:
            if identity.may_all(other.permissions):
                return other.id
            record = await self._mesh.tasks.store.read(parent_id) if parent_id else None
            if record is not None and record.task().on_behalf_of == other.id:
                return other.id
        return identity.id

    async def _parent(self, task_id: str, identity: Identity) -> Parent | None:
        if not task_id:
            return None
        parent = await self._mesh.tasks.store.parent(task_id)
        if may_change(identity, parent.owner, parent.identity):
            return parent
        if parent.public:
            raise permission_denied(f"{identity.id} does not do task {task_id}.", task_id=task_id)
        raise errors.no_such_task(task_id)

    async def ReportTask(
        self, request: pb.ReportTaskRequest, context: Context
    ) -> pb.ReportTaskResponse:
        """Takes in what an agent says about its task."""
        report: Any = getattr(request, request.WhichOneof("report") or "progress")
        if request.HasField("error") and not request.error.code:
            raise invalid_argument("error.code", "must not be OK")
        _check_size("result", request.result)
        at = await self._mesh.tasks.store.report_delivery(
            request.task_id, request.delivery_id, current_identity().id, report
        )
        return pb.ReportTaskResponse(
            state=pb.TaskState.ValueType(at.state),
            cancel_requested=at.state in _STOPPED,
            revision=at.revision,
        )

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        """Describes a task."""
        return pb.GetTaskResponse(task=await self._find(request.task_id))

    async def ListTasks(
        self, request: pb.ListTasksRequest, context: Context
    ) -> pb.ListTasksResponse:
        """Lists a page of the tasks that the caller sees."""
        identity = current_identity()
        seer = None if may_change(identity) else identity
        return await list_tasks(self._mesh.tasks.store, request, seer)

    async def CancelTask(
        self, request: pb.CancelTaskRequest, context: Context
    ) -> pb.CancelTaskResponse:
        """Cancels a task, and what was assigned on its behalf when asked to."""
        identity, store = current_identity(), self._mesh.tasks.store
        task = await self._find(request.task_id)
        if not may_change(identity, task.owner):
            raise permission_denied(
                f"Task {task.task_id} belongs to another identity.", task_id=task.task_id
            )
        error = errors.cancelled(request.reason, identity.id)
        record = await store.cancel(task.task_id, error)
        if request.cancel_children:
            # Nothing is assigned on behalf of what has ended, so no child comes later.
            parents = [task.task_id]
            while parents:
                parents = await self._cancel_children(parents.pop(), error) + parents
            record = await store.read(task.task_id) or record
        return pb.CancelTaskResponse(task=record.task())

    async def _cancel_children(self, task_id: str, error: MeshError) -> list[str]:
        store, cancelled, after = self._mesh.tasks.store, list[str](), 0
        while True:
            names, after = await store.children(task_id, after)
            if not names:
                return cancelled
            await asyncio.gather(*(self._cancel(name, error) for name in names))
            cancelled += names

    async def _cancel(self, task_id: str, error: MeshError) -> None:
        try:
            await self._mesh.tasks.store.cancel(task_id, error)
        except MeshError as problem:
            # It has been forgotten meanwhile.
            if problem.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def WatchTask(self, request: pb.WatchTaskRequest, context: Context) -> None:
        """Follows a task to its end."""
        identity = current_identity()
        async with self._streams.stream():
            await follow(
                self._mesh.tasks,
                request.task_id,
                request.after_revision,
                lambda task: context.write(pb.WatchTaskResponse(task=task)),
                lambda record: sees_task(identity, record),
            )

    async def GetTaskStats(
        self, request: pb.GetTaskStatsRequest, context: Context
    ) -> pb.GetTaskStatsResponse:
        """Counts tasks."""
        tasks = self._mesh.tasks
        return await task_stats(tasks.store, tasks.roster.agents, request)

    async def _find(self, task_id: str) -> pb.Task:
        record = await self._mesh.tasks.store.read(task_id)
        if record is None or not sees_task(current_identity(), record):
            raise errors.no_such_task(task_id)
        return record.task()


def _check_size(field: str, message: Message) -> None:
    size = message.ByteSize()
    if size > _MOST_BYTES:
        raise invalid_argument(
            field,
            f"{size} bytes are too many, {_MOST_BYTES} are allowed; put them into a bundle and name it",
            reason="PAYLOAD_TOO_LARGE",
        )
