"""Jobs are tasks for geometry workers: how one is written as the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from bxmesh.agent.v1 import message_pb2, task_pb2
from bxmesh.geometry.v1 import calculations_pb2, geometry_work_pb2, gradients_pb2
from bxmesh.geometry.v1 import job_pb2 as pb
from bxmesh.server.geometry.agent.capabilities import CALCULATIONS, GRADIENTS
from bxmesh.server.security.permissions import METHODS

__all__ = [
    "JOB_LABEL",
    "calculation_of",
    "is_job",
    "job_of",
    "kind_of",
    "payload_of",
    "permissions_of",
    "state_filter",
]

JOB_LABEL = "bxmesh.job"
"""Tells tasks that are jobs from others; its value is the field of JobSpec that is set."""

_STATES = {
    task_pb2.TASK_STATE_PENDING: pb.JOB_STATE_PENDING,
    task_pb2.TASK_STATE_ASSIGNED: pb.JOB_STATE_PENDING,
    task_pb2.TASK_STATE_RUNNING: pb.JOB_STATE_RUNNING,
    task_pb2.TASK_STATE_COMPLETED: pb.JOB_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_FAILED: pb.JOB_STATE_FAILED,
    task_pb2.TASK_STATE_CANCELLED: pb.JOB_STATE_CANCELLED,
    task_pb2.TASK_STATE_TIMED_OUT: pb.JOB_STATE_TIMED_OUT,
}
_RPCS = {
    "gradients": "ComputeGradients",
    "structure_factors": "ComputeStructureFactors",
    "map": "ComputeMap",
    "validation": "ValidateModel",
    "minimization": "Minimize",
    "restraints": "ExportRestraints",
    "data": "AnalyzeData",
    "real_space": "ComputeRealSpaceGradients",
}


def calculation_of(spec: pb.JobSpec) -> Any:
    """Returns the request in a job."""
    return getattr(spec, spec.WhichOneof("calculation") or "gradients")


def kind_of(request: Message) -> str:
    """Returns the type of the task, which is also the kind of work, that a request is."""
    return CALCULATIONS.get(type(request), GRADIENTS)


def permissions_of(spec: pb.JobSpec) -> tuple[str, ...]:
    """Returns what one must be allowed to do the same without a job."""
    rpc = _RPCS[spec.WhichOneof("calculation") or "gradients"]
    return METHODS[f"/bxmesh.geometry.v1.GeometryService/{rpc}"].permissions


def is_job(task: task_pb2.Task) -> bool:
    """Whether a task was created as a job; anybody can write its label on another."""
    return task.spec.labels.get(JOB_LABEL) in _RPCS and task.spec.parameters.HasField("protobuf")


def state_filter(state: pb.JobState.ValueType) -> list[task_pb2.TaskState.ValueType]:
    """Returns the states of tasks whose jobs are in one."""
    return [task for task, job in _STATES.items() if job == state]


def job_of(task: task_pb2.Task) -> pb.Job:
    """Returns a task as the job that it is."""
    spec = task.spec
    job = pb.Job(
        job_id=task.task_id,
        state=_STATES[task.state],
        progress=gradients_pb2.Progress(step=task.progress.message, worker_id=task.agent_id),
        fraction_done=task.progress.percent / 100,
        owner=task.owner,
        attempts=task.attempts,
        revision=task.revision,
    )
    job.spec.priority = pb.JobPriority.ValueType(spec.priority)
    name = spec.labels[JOB_LABEL]
    spec.parameters.protobuf.Unpack(getattr(job.spec, name))
    for label, value in spec.labels.items():
        if label != JOB_LABEL:
            job.spec.labels[label] = value
    if spec.HasField("timeout"):
        job.spec.timeout.CopyFrom(spec.timeout)
    if task.HasField("error"):
        job.error.CopyFrom(task.error)
    for time in ("create_time", "start_time", "end_time", "expire_time"):
        if task.HasField(time):
            getattr(job, time).CopyFrom(getattr(task, time))
    if task.result.HasField("protobuf"):
        job.result.CopyFrom(task.result.protobuf)
        job.result_bundle_ids.extend(_bundles(job.result))
    if job.state == pb.JOB_STATE_SUCCEEDED:
        job.fraction_done = 1.0
    return job


def payload_of(request: Message) -> message_pb2.Payload:
    """Returns a request as a task carries it."""
    payload = message_pb2.Payload()
    payload.protobuf.Pack(request)
    return payload


def _bundles(result: AnyMessage) -> Iterator[str]:
    gradients = geometry_work_pb2.GradientsWorkResult()
    if result.Unpack(gradients):
        yield gradients.bundle_id
        return
    calculated = geometry_work_pb2.CalculationWorkResult()
    result.Unpack(calculated)
    if calculated.bundle_id:
        yield calculated.bundle_id
    for kind in (
        calculations_pb2.StructureFactorsSummary,
        calculations_pb2.MapSummary,
        calculations_pb2.MinimizationSummary,
        calculations_pb2.ValidateModelResponse,
        calculations_pb2.RestraintsHeader,
    ):
        summary = kind()
        if calculated.summary.Unpack(summary):
            for field, value in summary.ListFields():
                if field.name.endswith("bundle_id"):
                    yield value
