"""One session on a worker: reads steps, computes, answers."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Callable

import numpy as np
from opentelemetry import trace

from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server import telemetry
from bxmesh.server.errors import MeshError, internal, invalid_argument
from bxmesh.server.geometry import frames
from bxmesh.server.geometry.agent.capabilities import SESSION
from bxmesh.server.geometry.agent.evaluation import Array, Evaluation, gradient_dtype, stack
from bxmesh.server.geometry.agent.layouts import Layout
from bxmesh.server.geometry.agent.warm_models import WarmModels, one_sample_call
from bxmesh.tensors import (
    DEFAULT_CHUNK_BYTES,
    TensorAssembler,
    TensorError,
    from_message,
    to_chunks,
    to_message,
    to_spec,
)

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("bxmesh.engine")

_INLINE_BYTES = 2 * 1024 * 1024

RememberScales = Callable[[geometry_work_pb2.OpenSessionWork, int, Array], None]
"""Takes a session's work, the step that refreshed the scales, and its coordinates."""


class Session:
    """One session: reads steps, computes, answers, in order."""

    def __init__(
        self,
        work: geometry_work_pb2.OpenSessionWork,
        identity: str,
        evaluation: Evaluation,
        layout: Layout,
        connection: socket.socket,
        models: WarmModels,
        max_batch_bytes: int,
        remember_scales: RememberScales,
    ) -> None:
        self._work = work
        self._identity = identity
        self._evaluation = evaluation
        self._layout = layout
        self._connection = connection
        self._models = models
        self._max_batch_bytes = max_batch_bytes
        self._remember_scales = remember_scales
        self._is_traced = trace.get_current_span().get_span_context().trace_flags.sampled
        self._awaiting: gradients_pb2.SessionStep | None = None
        self._assembler = TensorAssembler(max_batch_bytes)

    def run(self) -> None:
        """Serves until the server hangs up."""
        while True:
            request = frames.receive(self._connection, gradients_pb2.StreamGradientsRequest)
            if request is None or request.HasField("close"):
                self._refuse_unfinished()
                return
            if request.HasField("step"):
                self._take_step(request.step)
            elif request.HasField("chunk"):
                self._take_chunk(request)

    def _take_step(self, step: gradients_pb2.SessionStep) -> None:
        self._refuse_unfinished()
        if not step.HasField("coordinates"):
            self._awaiting = step
            self._assembler = TensorAssembler(self._max_batch_bytes)
            return
        try:
            coordinates = from_message(step.coordinates, max_bytes=self._max_batch_bytes)
        except TensorError as error:
            self._refuse(step.step_id, _tensor_error(error))
            return
        self._answer(step, coordinates)

    def _refuse_unfinished(self) -> None:
        if self._awaiting is None:
            return
        try:
            self._assembler.finish()
            error = TensorError("TENSOR_TRUNCATED", "the coordinates never came")
        except TensorError as truncated:
            error = truncated
        self._refuse(self._awaiting.step_id, _tensor_error(error))
        self._awaiting = None

    def _take_chunk(self, request: gradients_pb2.StreamGradientsRequest) -> None:
        step = self._awaiting
        if step is None:
            return  # The rest of a tensor whose step was refused.
        try:
            tensor = self._assembler.feed(request.chunk)
        except TensorError as error:
            self._awaiting = None
            self._refuse(step.step_id, _tensor_error(error))
            return
        if tensor is not None:
            self._awaiting = None
            self._answer(step, tensor.array)

    def _refuse(self, step_id: int, error: MeshError) -> None:
        status = error.to_status(telemetry.current_trace_id())
        result = gradients_pb2.StepResult(step_id=step_id, error=status)
        self._send(gradients_pb2.StreamGradientsResponse(result=result))

    def _answer(self, step: gradients_pb2.SessionStep, coordinates: Array) -> None:
        try:
            samples = self._layout.samples(coordinates)
            if step.refresh_scales:
                self._refresh_scales(step.step_id, samples[0])
            values, arrays = self._compute(samples, coordinates)
        except MeshError as error:
            self._refuse(step.step_id, error)
        except ConnectionAbortedError:
            raise
        except Exception:
            _log.exception("a step failed")
            self._refuse(
                step.step_id, internal("The worker failed at this step; its log says why.")
            )
        else:
            self._send_result(step.step_id, values, arrays)

    def _refresh_scales(self, step_id: int, sites: Array) -> None:
        with self._models.held(SESSION, self._work.session_id, self._identity):
            one_sample_call(lambda: self._evaluation.refresh_scales(sites))
        self._remember_scales(self._work, step_id, sites)

    def _compute(
        self, samples: Array, coordinates: Array
    ) -> tuple[list[gradients_pb2.SampleValue], dict[str, Array]]:
        values, gradients = [], []
        batch = self._evaluation.batch
        for done in range(0, len(samples), batch):
            if done and self._is_abandoned():
                raise ConnectionAbortedError("nobody waits for the step any more")
            # Held for a part only, so that others on this worker get their turns.
            with self._models.stepping(self._work.session_id, self._identity), self._span():
                results = self._evaluation.evaluate_batch(samples[done : done + batch])
            for number, (value, sample) in enumerate(results, start=done):
                value.sample = number
                values.append(value)
                gradients.append(sample)
        dtype = gradient_dtype(self._work.options, coordinates.dtype)
        if len(samples) == 1 and dtype == "<f8" and gradients[0]:
            names = self._evaluation.tensors
            arrays = {name: gradients[0][name][np.newaxis] for name in names}
        else:
            arrays = stack(self._evaluation, gradients, len(values), dtype)
        arrays = {name: self._layout.arranged(array) for name, array in arrays.items()}
        if coordinates.ndim == self._layout.axes:
            arrays = {name: array[0] for name, array in arrays.items()}
        return values, arrays

    def _is_abandoned(self) -> bool:
        # A server that merely has no more to send still reads: only a whole hang-up counts.
        poll = select.poll()
        poll.register(self._connection, 0)
        return bool(poll.poll(0))

    def _span(self) -> contextlib.AbstractContextManager[object]:
        if self._is_traced:
            return _tracer.start_as_current_span("engine step")
        return contextlib.nullcontext()

    def _send_result(
        self, step_id: int, values: list[gradients_pb2.SampleValue], arrays: dict[str, Array]
    ) -> None:
        result = gradients_pb2.StepResult(step_id=step_id, samples=values)
        units = {name: unit for name, (_, unit) in self._evaluation.tensors.items()}
        if sum(array.nbytes for array in arrays.values()) <= _INLINE_BYTES:
            result.gradients.extend(
                to_message(array, name, units[name]) for name, array in arrays.items()
            )
            self._send(gradients_pb2.StreamGradientsResponse(result=result))
            return
        result.chunked.extend(arrays)
        self._send(gradients_pb2.StreamGradientsResponse(result=result))
        for name, array in arrays.items():
            for chunk in to_chunks(array, to_spec(array, name, units[name]), DEFAULT_CHUNK_BYTES):
                self._send(gradients_pb2.StreamGradientsResponse(chunk=chunk))

    def _send(self, response: gradients_pb2.StreamGradientsResponse) -> None:
        self._connection.sendall(frames.encode(response))


def _tensor_error(error: TensorError) -> MeshError:
    return invalid_argument("step.coordinates", str(error), reason=error.reason)
