"""Jobs as tasks of Prefect: work that goes on without the flow that asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.runtime import task_run

from bxmesh.client.batches import BatchItem
from bxmesh.client.errors import BxmeshError
from bxmesh.client.jobs import KINDS, Job, JobPriority, JobResult
from bxmesh.client.models import Model
from bxmesh.client.names import invalid
from bxmesh.client.prefect.artifacts import Artifacts
from bxmesh.client.prefect.connection import MeshConnection, connected
from bxmesh.client.prefect.retries import mesh_task

__all__ = ["JobFailed", "submit_job", "wait_for_job"]


class JobFailed(BxmeshError):  # noqa: N818 - named like TaskFailed
    """A job has failed, and waiting again does not help; code and reason are its error's."""


@mesh_task
def submit_job(
    model: Model | str,
    kind: str,
    options: Mapping[str, Any] | None = None,
    *,
    priority: JobPriority | None = None,
    timeout: float | None = None,
    labels: Mapping[str, str] | None = None,
    mesh: MeshConnection | None = None,
) -> str:
    """Creates a job and returns its id: gradients, minimization or another kind of `KINDS`.

    Options are the fields of its request in JSON, such as {"maxEvaluations": 200}. However often the
    task is tried, there is one job. InvalidInput for a kind or option that there is not.
    """
    if kind not in KINDS:
        raise invalid("kind", f"{kind} is none of {', '.join(KINDS)}")
    model_id = model.model_id if isinstance(model, Model) else model
    request = BatchItem(model_id, kind, options=options or {}).request(model_id)
    with connected(mesh) as connection:
        job = connection.jobs.create(
            request,
            priority=priority,
            timeout=timeout,
            labels=labels,
            request_id=str(task_run.id or ""),
        )
    return job.job_id


@mesh_task
def wait_for_job(job_id: str, *, mesh: MeshConnection | None = None) -> JobResult:
    """Waits for a job and returns its summary and tensors, those a cancelled one has kept too.

    A progress artifact follows it. Raises JobFailed, NotFound for an unknown job or an expired result.
    """
    with Artifacts(f"job {job_id}") as artifacts, connected(mesh) as connection:
        for job in connection.jobs.watch(job_id):
            artifacts.tell(job.fraction_done, job.step or job.state)
        job = connection.jobs.wait(job_id)
        if job.state == "failed":
            raise _failure(job)
        return connection.jobs.result(job_id)


def _failure(job: Job) -> JobFailed:
    error = job.error or BxmeshError("it did not say why")
    return JobFailed(
        f"job {job.job_id} ({job.kind}) has failed: {error.message}",
        code=error.code,
        reason=error.reason,
        metadata={**error.metadata, "job_id": job.job_id},
        field_violations=error.field_violations,
        trace_id=error.trace_id,
    )
