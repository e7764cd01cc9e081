"""The tasks that a geometry worker does, as any agent of the mesh would."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import protovalidate
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from opentelemetry import trace

from bxmesh.agent.v1 import message_pb2, task_pb2
from bxmesh.geometry.v1 import bundle_pb2, calculations_pb2, geometry_work_pb2, gradients_pb2
from bxmesh.server import telemetry
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import MeshError, invalid_argument, not_found, unimplemented
from bxmesh.server.geometry.agent.calculations import Calculations, Commission
from bxmesh.server.geometry.agent.capabilities import CALCULATIONS, GRADIENTS
from bxmesh.server.geometry.agent.minimization import MOST_EVALUATIONS
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.coordinates import check_shape, load_coordinates
from bxmesh.server.geometry.inputs import model_spec, named_bundles
from bxmesh.server.geometry.sharing import seen_by
from bxmesh.server.interceptors.validation import refuse_invalid
from bxmesh.server.security.identities import Identity
from bxmesh.server.streams.entries import HeldEntry
from bxmesh.server.streams.mailboxes import TASK
from bxmesh.server.streams.settlement import FINAL
from bxmesh.server.tasks import TaskStore
from bxmesh.tensors import TensorError, size_bytes
from bxmesh.work.v1 import work_pb2

_PROGRESS_SECONDS = 0.5
_MOST_RESULT_BYTES = 1 << 20


_REQUESTS: Mapping[str, type[Message]] = {
    GRADIENTS: gradients_pb2.ComputeGradientsRequest,
    **{kind: request for request, kind in CALCULATIONS.items()},
}


class GeometryTasks:
    """Does tasks whose type is a kind of calculation, such as geometry.gradients.

    Parameters are the request of the RPC that does the same, as protobuf or in its JSON form; the
    result is a GradientsWorkResult or a CalculationWorkResult.
    """

    def __init__(
        self,
        worker_id: str,
        calculations: Calculations,
        store: BundleStore,
        tasks: TaskStore,
        *,
        max_batch_bytes: int,
        result_lifetime: timedelta,
    ) -> None:
        self._result_lifetime = result_lifetime
        self._worker_id = worker_id
        self._calculations = calculations
        self._store = store
        self._tasks = tasks
        self._max_batch_bytes = max_batch_bytes
        self._validator = protovalidate.Validator()

    async def handle(self, held: HeldEntry) -> None:
        """Does the task of an entry to its end; raises MeshError for what is no task of ours."""
        delivery = work_pb2.TaskDelivery()
        if held.item.kind != TASK or not held.item.payload.Unpack(delivery):
            raise unimplemented("A geometry worker takes tasks only.", reason="NO_HANDLER")
        try:
            task = await self._tasks.begin(delivery.task_id, delivery.attempt, self._worker_id)
        except MeshError as error:
            if error.code.name in ("NOT_FOUND", "FAILED_PRECONDITION"):
                return  # It was given to somebody else since, or has ended.
            raise
        if task.state != task_pb2.TASK_STATE_RUNNING:
            return
        with telemetry.tracer().start_as_current_span(
            f"process {task.spec.task_type}",
            context=telemetry.extract(task.trace_context),
            kind=trace.SpanKind.CONSUMER,
            attributes={"bxmesh.task.id": task.task_id, "bxmesh.worker.id": self._worker_id},
        ):
            await self._do(task, delivery.attempt, held)

    async def _do(self, task: task_pb2.Task, attempt: int, held: HeldEntry) -> None:
        try:
            result = await self._compute(task, attempt, held)
        except MeshError as error:
            if not held.over:
                await self._tasks.fail(
                    task.task_id,
                    attempt,
                    self._worker_id,
                    error.to_status(),
                    hopeless=error.code in FINAL,
                )
        else:
            payload = message_pb2.Payload()
            payload.protobuf.Pack(result)
            if held.over:
                # What was reached; another attempt may be under way, which has no use for it.
                with contextlib.suppress(MeshError):
                    await self._tasks.leave(task.task_id, attempt, self._worker_id, payload)
            else:
                await self._tasks.finish(task.task_id, attempt, self._worker_id, payload)

    async def _compute(self, task: task_pb2.Task, attempt: int, held: HeldEntry) -> Message:
        kind = _REQUESTS.get(task.spec.task_type)
        if kind is None:
            raise unimplemented(
                f"A geometry worker does tasks of the types {', '.join(sorted(_REQUESTS))}, not "
                f"{task.spec.task_type}.",
                reason="UNKNOWN_TASK",
            )
        request: Any = self._request(task.spec.parameters, kind)
        for bundle_id in named_bundles(request):
            bundle = self._store.get(bundle_id)
            if not _sees(task, bundle):
                raise not_found(f"there is no bundle {bundle.bundle_id}", reason="BUNDLE_NOT_FOUND")
        if isinstance(request, gradients_pb2.ComputeGradientsRequest):
            return await self._gradients(request, task, attempt, held)
        return await self._calculation(request, task, attempt, held)

    async def _calculation(
        self, request: Any, task: task_pb2.Task, attempt: int, held: HeldEntry
    ) -> geometry_work_pb2.CalculationWorkResult:
        work = geometry_work_pb2.CalculationWork(
            model_id=request.model_id,
            spec=model_spec(self._store, request.model_id, partial(_sees, task)),
        )
        work.request.Pack(request)
        loop = asyncio.get_running_loop()
        told = 0.0

        def tell(message: Message) -> None:
            nonlocal told
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                progress = _progress(message, request)
                asyncio.run_coroutine_threadsafe(self._tell(task.task_id, attempt, progress), loop)

        steps = Steps(lambda step: tell(gradients_pb2.Progress(step=step)))
        return await self._calculations.in_thread(
            lambda: self._calculations.calculate(
                work, steps, tell, lambda: held.over, self._commission(task, held)
            )
        )

    async def _gradients(
        self,
        request: gradients_pb2.ComputeGradientsRequest,
        task: task_pb2.Task,
        attempt: int,
        held: HeldEntry,
    ) -> geometry_work_pb2.GradientsWorkResult:
        samples = self._samples(request)
        work = geometry_work_pb2.GradientsWork(
            model_id=request.model_id,
            spec=model_spec(self._store, request.model_id, partial(_sees, task)),
            options=request.options,
            sample_start=0,
            sample_stop=samples,
        )
        if request.HasField("coordinates"):
            work.coordinates.CopyFrom(request.coordinates)
        loop = asyncio.get_running_loop()
        told = time.monotonic()

        def tell(percent: float, message: str) -> None:
            progress = task_pb2.TaskProgress(percent=percent, message=message)
            asyncio.run_coroutine_threadsafe(self._tell(task.task_id, attempt, progress), loop)

        def is_over(done: int) -> bool:
            nonlocal told
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                tell(100 * done / samples, f"{done} of {samples} samples")
            return held.over

        steps = Steps(lambda step: tell(0.0, step))
        result = await self._calculations.in_thread(
            lambda: self._calculations.compute(work, steps, is_over, self._commission(task, held))
        )
        if result.ByteSize() > _MOST_RESULT_BYTES:
            raise invalid_argument(
                "coordinates",
                f"the values of {samples} samples are too many for one task; give it fewer",
                reason="RESULT_TOO_LARGE",
            )
        return result

    def _commission(self, task: task_pb2.Task, held: HeldEntry) -> Commission:
        return Commission(held.item.item_id, task.owner, self._result_lifetime)

    async def _tell(self, task_id: str, attempt: int, progress: Any) -> None:
        # How far it is may be lost; that it was cancelled is told to the mailbox.
        try:
            await self._tasks.progress(task_id, attempt, self._worker_id, progress)
        except MeshError:
            return

    def _request(self, parameters: message_pb2.Payload, kind: type[Message]) -> Message:
        request = kind()
        name = kind.DESCRIPTOR.full_name
        try:
            if parameters.HasField("json"):
                json_format.Parse(parameters.json.json, request, max_recursion_depth=20)
            elif not parameters.protobuf.Unpack(request):
                raise invalid_argument(
                    "spec.parameters",
                    f"must be a {name}, or its JSON form",
                    reason="SCHEMA_MISMATCH",
                )
        except (DecodeError, json_format.ParseError) as error:
            raise invalid_argument(
                "spec.parameters",
                f"are no {name}: {str(error)[:200]}",
                reason="SCHEMA_MISMATCH",
            ) from error
        refuse_invalid(self._validator, request)
        return request

    def _samples(self, request: gradients_pb2.ComputeGradientsRequest) -> int:
        source = request.coordinates.WhichOneof("source")
        if source is None:
            return 1
        if source == "bundle_id":
            shape = tuple(load_coordinates(self._store, request.coordinates.bundle_id).shape)
        else:
            spec = request.coordinates.tensor.spec
            shape = tuple(spec.shape)
            try:
                size_bytes(spec, max_bytes=self._max_batch_bytes)
            except TensorError as error:
                raise invalid_argument("coordinates", str(error), reason=error.reason) from error
        check_shape(shape, self._max_batch_bytes)
        return shape[0] if len(shape) == 3 else 1


def _progress(message: Message, request: Message) -> task_pb2.TaskProgress:
    match message, request:
        case (
            calculations_pb2.MinimizationStep() as step,
            calculations_pb2.MinimizeRequest() as asked,
        ):
            most = (asked.max_evaluations or MOST_EVALUATIONS) * max(1, asked.macro_cycles)
            return task_pb2.TaskProgress(
                percent=min(100.0, 100.0 * step.evaluation / most),
                message=f"evaluation {step.evaluation} of {most} at most, {_described(step.value)}",
            )
        case gradients_pb2.Progress() as progress, _:
            return task_pb2.TaskProgress(message=progress.step)
    return task_pb2.TaskProgress()


def _described(value: gradients_pb2.SampleValue) -> str:
    if value.HasField("xray"):
        return f"target {value.xray.value:.5g}, R-work {value.xray.r_work:.4f}"
    return f"energy {value.geometry.energy:.6g}"


def _sees(task: task_pb2.Task, bundle: bundle_pb2.Bundle) -> bool:
    """Whether whoever assigned a task sees a bundle."""
    return seen_by(Identity(task.owner, "user", team=task.team), bundle)
