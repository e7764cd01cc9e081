"""Jobs: calculations that go on without whoever asked for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast
from uuid import uuid4

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from numpy.typing import NDArray

from bxmesh.client.agents.calls.watching import watch
from bxmesh.client.agents.times import from_timestamp, to_duration
from bxmesh.client.bundles import AsyncBundles
from bxmesh.client.calculation import MAX_ANSWER_BYTES, damaged
from bxmesh.client.connection import Connection
from bxmesh.client.errors import BxmeshError, FailedPrecondition, NotFound, from_status
from bxmesh.client.names import EnumNames, invalid
from bxmesh.geometry.v1 import calculations_pb2, geometry_work_pb2, gradients_pb2
from bxmesh.geometry.v1 import job_pb2 as pb
from bxmesh.tensors import TensorError, from_buffer, size_bytes

__all__ = ["KINDS", "AsyncJobs", "Job", "JobPriority", "JobResult", "JobState"]

JobState = Literal["pending", "running", "succeeded", "failed", "cancelled", "timed_out"]
JobPriority = Literal["low", "medium", "high", "critical"]

STATES = EnumNames(pb.JobState, "JOB_STATE_")
PRIORITIES = EnumNames(pb.JobPriority, "JOB_PRIORITY_")

_FIELDS: Mapping[type[Message], str] = {
    gradients_pb2.ComputeGradientsRequest: "gradients",
    calculations_pb2.ComputeStructureFactorsRequest: "structure_factors",
    calculations_pb2.ComputeMapRequest: "map",
    calculations_pb2.ValidateModelRequest: "validation",
    calculations_pb2.MinimizeRequest: "minimization",
    calculations_pb2.ExportRestraintsRequest: "restraints",
    calculations_pb2.AnalyzeDataRequest: "data",
    calculations_pb2.ComputeRealSpaceGradientsRequest: "real_space",
}

KINDS: Mapping[str, type[Message]] = {name: kind for kind, name in _FIELDS.items()}
"""What a job can compute, and the request of the contract that says so."""

_INTERRUPTED = ("cancelled", "timed_out")
_LAST_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """A job as it stood."""

    job_id: str
    """The name."""
    kind: str
    """What it computes: gradients, structure_factors, map, validation, minimization, restraints."""
    state: JobState
    """Where it stands."""
    step: str
    """The step under way, for people."""
    fraction_done: float
    """0 to 1."""
    owner: str
    """The identity that created it."""
    attempts: int
    """How often it was started."""
    labels: Mapping[str, str]
    """The caller's own."""
    result_bundle_ids: tuple[str, ...]
    """The bundles it produced: tensors first, then files."""
    error: BxmeshError | None
    """Why it failed, or why the last attempt did."""
    create_time: datetime | None
    """When it was created."""
    start_time: datetime | None
    """When a worker took it first."""
    end_time: datetime | None
    """When it ended."""
    revision: int
    """Grows with every change."""
    message: pb.Job = field(repr=False)
    """The job of the contract."""

    @property
    def done(self) -> bool:
        """Whether it has ended, however it did."""
        return self.state not in ("pending", "running")

    @classmethod
    def from_message(cls, message: pb.Job) -> Job:
        """Returns the job that the message describes."""
        return cls(
            job_id=message.job_id,
            kind=message.spec.WhichOneof("calculation") or "",
            state=cast(JobState, STATES.name(message.state)),
            step=message.progress.step,
            fraction_done=message.fraction_done,
            owner=message.owner,
            attempts=message.attempts,
            labels=dict(message.spec.labels),
            result_bundle_ids=tuple(message.result_bundle_ids),
            error=from_status(message.error) if message.error.code else None,
            create_time=from_timestamp(message.create_time),
            start_time=from_timestamp(message.start_time),
            end_time=from_timestamp(message.end_time),
            revision=message.revision,
            message=message,
        )


@dataclass(frozen=True)
class JobResult:
    """What came out of a job."""

    summary: Message
    """The GradientsWorkResult, or the summary of the calculation, of the contract."""
    tensors: Mapping[str, NDArray[Any]]
    """By name."""


class AsyncJobs:
    """Creating, following and reading jobs."""

    def __init__(self, connection: Connection, bundles: AsyncBundles) -> None:
        self._connection = connection
        self._bundles = bundles

    async def create(
        self,
        request: Message,
        *,
        priority: JobPriority | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it is the job's
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Job:
        """Creates a job for a request of the contract, such as a MinimizeRequest.

        The timeout, in seconds, is from its start. The same request id gives the same job for an
        hour. Raises NotFound for an unknown model, ResourceExhausted for too many open jobs.
        """
        name = _FIELDS.get(type(request))
        if name is None:
            raise invalid(
                "request", f"{type(request).__name__} is no calculation", "NO_CALCULATION"
            )
        spec = pb.JobSpec(
            priority=PRIORITIES.number(priority), timeout=to_duration(timeout), labels=labels
        )
        getattr(spec, name).CopyFrom(request)
        message = pb.CreateJobRequest(request_id=request_id or uuid4().hex, spec=spec)
        response = await self._connection.unary(self._connection.geometry.CreateJob, message)
        return Job.from_message(response.job)

    async def get(self, job_id: str) -> Job:
        """Returns a job as it stands. Raises NotFound for an unknown or forgotten one."""
        request = pb.GetJobRequest(job_id=job_id)
        response = await self._connection.unary(self._connection.geometry.GetJob, request)
        return Job.from_message(response.job)

    async def list(
        self, *, state: JobState | None = None, page_size: int = 0
    ) -> AsyncIterator[Job]:
        """Yields jobs, newest first."""
        request = pb.ListJobsRequest(state=STATES.number(state), page_size=page_size)
        async for response in self._connection.pages(self._connection.geometry.ListJobs, request):
            for message in response.jobs:
                yield Job.from_message(message)

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job; what a minimization has reached is kept. One that has ended is left."""
        request = pb.CancelJobRequest(request_id=uuid4().hex, job_id=job_id)
        response = await self._connection.unary(self._connection.geometry.CancelJob, request)
        return Job.from_message(response.job)

    async def watch(self, job_id: str, *, after_revision: int = 0) -> AsyncGenerator[Job, None]:
        """Yields a job at every change to its end, over lost connections too."""
        responses: AsyncGenerator[Any, None] = watch(
            self._connection,
            cast(Any, self._connection.geometry.WatchJob),
            pb.WatchJobRequest(job_id=job_id, after_revision=after_revision),
            lambda response: response.job.revision,
        )
        async with aclosing(responses):
            async for response in responses:
                yield Job.from_message(response.job)

    async def wait(self, job_id: str) -> Job:
        """Returns a job when it has ended, however it did."""
        async with aclosing(self.watch(job_id)) as changes:
            async for job in changes:
                if job.done:
                    return job
        return await self.get(job_id)

    async def result(self, job_id: str) -> JobResult:
        """Returns what came out of a job, when it has ended; also what a cancelled one has kept.

        Raises the job's own error when it has no result, NotFound JOB_RESULT_EXPIRED when its bundles have
        expired.
        """
        job = await self.wait(job_id)
        until = time.monotonic() + _LAST_SECONDS
        while job.state in _INTERRUPTED and job.start_time and not job.message.result.type_url:
            # Its worker is told, and keeps what it has then.
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.1)
            job = await self.get(job_id)
        packed = job.message.result
        if not packed.type_url:
            raise job.error or FailedPrecondition(
                f"job {job_id} has no result: it is {job.state}", reason="NO_RESULT"
            )
        answer: Any = geometry_work_pb2.GradientsWorkResult()
        summary: Message = answer
        if not packed.Unpack(answer):
            answer = geometry_work_pb2.CalculationWorkResult()
            packed.Unpack(answer)
            summary = _message(answer.summary)
        tensors: dict[str, NDArray[Any]] = {}
        if answer.bundle_id:
            data = await self._download(job_id, answer.bundle_id)
            at = 0
            try:
                for spec in answer.tensors:
                    size = size_bytes(spec, max_bytes=MAX_ANSWER_BYTES)
                    part = memoryview(data)[at : at + size]
                    tensors[spec.name] = from_buffer(part, spec, max_bytes=size)
                    at += size
            except TensorError as error:
                raise damaged(error) from error
        return JobResult(summary, tensors)

    async def _download(self, job_id: str, bundle_id: str) -> bytes:
        try:
            return await self._bundles.download(bundle_id)
        except NotFound as error:
            raise NotFound(
                f"the result of job {job_id} has expired or was deleted; create the job again",
                code=error.code,
                reason="JOB_RESULT_EXPIRED",
                metadata={"job_id": job_id, "bundle_id": bundle_id},
                trace_id=error.trace_id,
            ) from error


def _message(packed: Any) -> Message:
    kind = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
    message: Message = message_factory.GetMessageClass(kind)()
    packed.Unpack(message)
    return message
