"""Sessions on a worker: a listener that servers connect to, and a thread for each session.

A step must cost little more than its arithmetic, so it takes neither the event loop nor Redis: the thread
that reads the coordinates computes and answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import select
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context
from opentelemetry import trace

from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server import telemetry
from bxmesh.server.bundles import BundleStore
from bxmesh.server.errors import MeshError, internal, invalid_argument
from bxmesh.server.geometry import frames
from bxmesh.server.geometry.agent.calculations import (
    Calculations,
    announcer,
    unpack,
)
from bxmesh.server.geometry.agent.evaluation import Array, Evaluation, gradient_dtype, stack
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.agent.warm_models import WarmModels, engine_call
from bxmesh.server.geometry.coordinates import load_coordinates, save_coordinates
from bxmesh.server.geometry.engine import as_samples
from bxmesh.server.geometry.session_record import SessionRecords
from bxmesh.server.streams import WorkContext
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

_CONNECT_SECONDS = 10.0
# More than the steps that a client may have under way.
_MOST_REFRESHES = 64
_INLINE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True)
class _Offer:
    """A session that was prepared for whoever brings the token."""

    work: geometry_work_pb2.OpenSessionWork
    evaluation: Evaluation
    context: otel_context.Context
    expires: float


class SessionServer:
    """Prepares sessions, and serves them on connections of their own."""

    def __init__(
        self,
        worker_id: str,
        models: WarmModels,
        calculations: Calculations,
        store: BundleStore,
        records: SessionRecords,
        *,
        listen: str,
        run_dir: Path,
        most_sessions: int,
        max_batch_bytes: int,
    ) -> None:
        self._worker_id = worker_id
        self._models = models
        self._calculations = calculations
        self._store = store
        self._records = records
        self._most_sessions = most_sessions
        self._max_batch_bytes = max_batch_bytes
        self._offers: dict[bytes, _Offer] = {}
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._listener, self.address = _bind(listen, run_dir / f"{worker_id}.sock")
        self._acceptor = threading.Thread(target=self._accept, name="sessions", daemon=True)
        self._acceptor.start()

    @property
    def open_sessions(self) -> int:
        """How many sessions are connected or about to be."""
        with self._guard:
            self._drop_stale_offers()
            return len(self._connections) + len(self._offers)

    def close(self) -> None:
        """Ends all sessions; servers open them elsewhere."""
        self._listener.close()
        with self._guard:
            for connection in self._connections:
                _hang_up(connection)
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    async def open_session(self, context: WorkContext) -> geometry_work_pb2.OpenSessionWorkResult:
        """Warms the model and answers where to connect, nowhere when the worker is full."""
        work = unpack(context.item.payload, geometry_work_pb2.OpenSessionWork)
        if self.open_sessions >= self._most_sessions:
            return geometry_work_pb2.OpenSessionWorkResult()
        steps = Steps(announcer(context, self._worker_id))
        evaluation, opened = await self._calculations.in_thread(lambda: self._prepare(work, steps))
        token = secrets.token_bytes(frames.TOKEN_BYTES)
        with self._guard:
            self._offers[token] = _Offer(
                work, evaluation, otel_context.get_current(), time.monotonic() + _CONNECT_SECONDS
            )
        return geometry_work_pb2.OpenSessionWorkResult(
            opened=opened, address=self.address, token=token
        )

    def _prepare(
        self, work: geometry_work_pb2.OpenSessionWork, steps: Steps
    ) -> tuple[Evaluation, gradients_pb2.SessionOpened]:
        opened = gradients_pb2.SessionOpened(
            session_id=work.session_id,
            worker_id=self._worker_id,
            engine=gradients_pb2.ENGINE_CCTBX,
        )
        with self._models.lock:
            evaluation = Evaluation(self._models.get(work.spec, steps), work.options)
            if work.scales_coordinates:
                sites = load_coordinates(self._store, work.scales_coordinates)
                evaluation.refresh_scales(np.array(sites, dtype=np.float64))
            evaluation.prepare(steps)
            opened.atoms = len(evaluation.model.atoms)
            if evaluation.has_xray:
                value, _ = evaluation.evaluate(None, steps)
                opened.xray.CopyFrom(value.xray)
        return evaluation, opened

    def _drop_stale_offers(self) -> None:
        now = time.monotonic()
        for token in [token for token, offer in self._offers.items() if offer.expires < now]:
            del self._offers[token]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._guard:
                if len(self._connections) >= self._most_sessions:
                    connection.close()
                    continue
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="session", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_CONNECT_SECONDS)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            token = frames.receive_exactly(connection, frames.TOKEN_BYTES)
            with self._guard:
                self._drop_stale_offers()
                offer = self._offers.pop(bytes(token), None) if token is not None else None
            if offer is None:
                return
            connection.settimeout(None)
            attached = otel_context.attach(offer.context)
            try:
                session = _Session(
                    offer.work,
                    offer.evaluation,
                    connection,
                    self._models,
                    self._max_batch_bytes,
                    self._remember_scales,
                )
                session.run()
            finally:
                otel_context.detach(attached)
        except (OSError, DecodeError) as error:
            _log.debug("a session ended: %s", error)
        except Exception:
            _log.exception("a session failed")
        finally:
            with self._guard:
                self._connections.discard(connection)
            connection.close()

    def _remember_scales(
        self, work: geometry_work_pb2.OpenSessionWork, step_id: int, sites: Array
    ) -> None:
        refresh = geometry_work_pb2.ScalesRefresh(
            step_id=step_id, coordinates=save_coordinates(self._store, sites)
        )
        noted = asyncio.run_coroutine_threadsafe(
            self._note_scales(work.session_id, refresh), self._loop
        )
        noted.result(timeout=_CONNECT_SECONDS)

    async def _note_scales(self, session_id: str, refresh: geometry_work_pb2.ScalesRefresh) -> None:
        record = await self._records.load(session_id)
        if record is not None:
            # A step that is computed again replaces what it, and those after it, had left.
            kept = [each for each in record.refreshes if each.step_id < refresh.step_id]
            del record.refreshes[:]
            record.refreshes.extend([*kept[-_MOST_REFRESHES:], refresh])
            await self._records.save(session_id, record)


class _Session:
    """One session: reads steps, computes, answers, in order."""

    def __init__(
        self,
        work: geometry_work_pb2.OpenSessionWork,
        evaluation: Evaluation,
        connection: socket.socket,
        models: WarmModels,
        max_batch_bytes: int,
        remember_scales: Any,
    ) -> None:
        self._work = work
        self._evaluation = evaluation
        self._connection = connection
        self._models = models
        self._max_batch_bytes = max_batch_bytes
        self._remember_scales = remember_scales
        self._atoms = len(evaluation.model.atoms)
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
            samples = engine_call(lambda: as_samples(coordinates, self._atoms))
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
        with self._models.lock:
            self._evaluation.refresh_scales(sites)
        self._remember_scales(self._work, step_id, sites)

    def _compute(
        self, samples: Array, coordinates: Array
    ) -> tuple[list[gradients_pb2.SampleValue], dict[str, Array]]:
        values, gradients = [], []
        for index, sites in enumerate(samples):
            if index and self._is_abandoned():
                raise ConnectionAbortedError("nobody waits for the step any more")
            # Held for one sample only, so that others on this worker get their turns.
            with self._models.lock, self._span():
                value, sample = self._evaluation.evaluate(sites)
            value.sample = index
            values.append(value)
            gradients.append(sample)
        dtype = gradient_dtype(self._work.options, coordinates.dtype)
        if len(samples) == 1 and dtype == "<f8" and gradients[0]:
            names = self._evaluation.tensors
            arrays = {name: gradients[0][name][np.newaxis] for name in names}
        else:
            arrays = stack(self._evaluation, gradients, len(values), dtype)
        if coordinates.ndim == 2:
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


def _bind(listen: str, path: Path) -> tuple[socket.socket, str]:
    if not listen:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        address = f"unix:{path}"
    else:
        host, _, port = listen.rpartition(":")
        listener = socket.create_server((host, int(port)))
        address = f"{host}:{listener.getsockname()[1]}"
    listener.listen(128)
    return listener, address


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        _log.debug("the server had hung up already")
