"""The RPCs on jobs: durable work with progress and a result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc

from bxmesh.agent.v1 import task_pb2
from bxmesh.geometry.v1 import job_pb2 as pb
from bxmesh.server import telemetry
from bxmesh.server.errors import MeshError, not_found, permission_denied
from bxmesh.server.geometry.agent.capabilities import CAPABILITIES
from bxmesh.server.geometry.inputs import named_bundles
from bxmesh.server.geometry.jobs import (
    JOB_LABEL,
    calculation_of,
    is_job,
    job_of,
    kind_of,
    payload_of,
    permissions_of,
    state_filter,
)
from bxmesh.server.geometry.mesh import GeometryMesh, routing_key
from bxmesh.server.geometry.sharing import require_target, seen_by_caller
from bxmesh.server.interceptors import current_identity
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.security.addresses import address_of
from bxmesh.server.security.ownership import may_change
from bxmesh.server.tasks import errors
from bxmesh.server.tasks.listing import list_tasks
from bxmesh.server.tasks.visibility import sees_task
from bxmesh.server.tasks.watch import follow

Context = grpc.aio.ServicerContext[Any, Any]

_CREATE = "/bxmesh.geometry.v1.GeometryService/CreateJob"


class JobRpcs:
    """CreateJob, GetJob, ListJobs, CancelJob and WatchJob."""

    _mesh: GeometryMesh
    _streams: OpenStreams

    async def CreateJob(
        self, request: pb.CreateJobRequest, context: Context
    ) -> pb.CreateJobResponse:
        """Creates a job, which waits for a worker."""
        mesh, identity, spec = self._mesh, current_identity(), request.spec
        identity.require(*permissions_of(spec))
        calculation = calculation_of(spec)
        if "options" in calculation.DESCRIPTOR.fields_by_name:
            require_target(calculation.options)
        model = mesh.model(calculation.model_id)
        for bundle_id in named_bundles(calculation):
            seen_by_caller(mesh.store, bundle_id)
        handed = type(calculation)()
        handed.CopyFrom(calculation)
        if "coordinates" in calculation.DESCRIPTOR.fields_by_name:
            coordinates, shape = await mesh.coordinates(
                calculation.coordinates, timedelta(seconds=mesh.settings.bundle_lifetime)
            )
            if shape:
                handed.coordinates.CopyFrom(coordinates)
        task = task_pb2.TaskSpec(
            task_type=kind_of(calculation),
            required_capabilities=[CAPABILITIES[0]],
            parameters=payload_of(handed),
            priority=spec.priority,  # type: ignore[arg-type]  # both count alike
            # Whoever has the model warm does the next one too.
            sticky_key=routing_key(model),
            labels={**spec.labels, JOB_LABEL: spec.WhichOneof("calculation") or ""},
        )
        if spec.HasField("timeout"):
            task.timeout.CopyFrom(spec.timeout)
        trace: dict[str, str] = {}
        telemetry.inject(trace)
        with mesh.quotas.telling(identity.id, _CREATE, address=address_of(context.peer())):
            record = await mesh.tasks.assign(
                task,
                identity.id,
                wait_for_agent=True,
                trace_context=trace,
                request_id=f"job:{request.request_id}" if request.request_id else "",
                allowance=mesh.quotas.allowance("max_open_tasks", identity.id),
            )
        return pb.CreateJobResponse(job=job_of(record.task()))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """Describes a job."""
        return pb.GetJobResponse(job=job_of(await self._find_job(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """Lists a page of the jobs that the caller sees."""
        identity = current_identity()
        page = await list_tasks(
            self._mesh.tasks.store,
            task_pb2.ListTasksRequest(
                states=state_filter(request.state),
                page_size=request.page_size,
                page_token=request.page_token,
            ),
            None if may_change(identity) else identity,
            is_job,
        )
        return pb.ListJobsResponse(
            jobs=map(job_of, page.tasks), next_page_token=page.next_page_token
        )

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: Context
    ) -> pb.CancelJobResponse:
        """Cancels a job; what it has reached is kept where the calculation keeps it."""
        identity = current_identity()
        task = await self._find_job(request.job_id)
        if not may_change(identity, task.owner):
            raise permission_denied(
                f"Job {request.job_id} belongs to another identity.", job_id=request.job_id
            )
        record = await self._mesh.tasks.store.cancel(
            task.task_id, errors.cancelled("", identity.id)
        )
        return pb.CancelJobResponse(job=job_of(record.task()))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> None:
        """Follows a job to its end."""
        identity = current_identity()
        async with self._streams.stream():
            try:
                await follow(
                    self._mesh.tasks,
                    request.job_id,
                    request.after_revision,
                    lambda task: context.write(pb.WatchJobResponse(job=job_of(task))),
                    lambda record: is_job(record.task()) and sees_task(identity, record),
                )
            except MeshError as error:
                if error.reason == "TASK_NOT_FOUND":
                    raise _no_such_job(request.job_id) from error
                raise

    async def _find_job(self, job_id: str) -> task_pb2.Task:
        record = await self._mesh.tasks.store.read(job_id)
        if record is not None and sees_task(current_identity(), record):
            task = record.task()
            if is_job(task):
                return task
        raise _no_such_job(job_id)


def _no_such_job(job_id: str) -> MeshError:
    return not_found(
        f"There is no job {job_id}, or no longer.", reason="JOB_NOT_FOUND", job_id=job_id
    )
