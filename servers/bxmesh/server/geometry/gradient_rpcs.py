"""ComputeGradients: a batch is cut into shares, computed by workers, and streamed in order."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc

from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server.geometry.agent.capabilities import GRADIENTS
from bxmesh.server.geometry.mesh import (
    GeometryMesh,
    caller,
    request_key,
    result_of,
    routing_key,
)
from bxmesh.server.geometry.sharing import require_target
from bxmesh.server.streams import Submission
from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensors import chunk_bytes_or_default, size_bytes

_Response = gradients_pb2.ComputeGradientsResponse

# About 30 ms of geometry: long against the cost of a work item, short against that of a batch.
_ATOMS_PER_SHARE = 40_000
_XRAY_FACTOR = 16
_MOST_SAMPLES_PER_SHARE = 256
_SHARES_AHEAD_PER_WORKER = 3
_PROGRESS_SECONDS = 0.1


@dataclass
class _Call:
    """One ComputeGradients and how far it is."""

    work: geometry_work_pb2.GradientsWork
    request_id: str
    deadline: float
    chunk_bytes: int
    samples: int
    atoms: int
    batched: bool
    samples_done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    bundle_ids: list[str] = field(default_factory=list)
    worker_ids: set[str] = field(default_factory=set)
    tensors_begun: set[str] = field(default_factory=set)
    engine: gradients_pb2.Engine.ValueType = gradients_pb2.ENGINE_UNSPECIFIED


class GradientRpcs:
    """The RPC that computes gradients for given coordinates."""

    _mesh: GeometryMesh

    async def ComputeGradients(
        self,
        request: gradients_pb2.ComputeGradientsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[_Response]:
        """Streams values and gradients in the order of the samples."""
        call = await self._accept(request, context)
        yield _Response(progress=gradients_pb2.Progress(step="queued", samples_total=call.samples))
        ranked = await self._mesh.router.workers(routing_key(call.work.spec))
        shares = deque(_shares(call))
        ahead: deque[tuple[AsyncExitStack, Submission]] = deque()
        most_ahead = max(1, len(ranked)) * _SHARES_AHEAD_PER_WORKER
        index, told = 0, time.monotonic()
        try:
            while shares or ahead:
                while shares and len(ahead) < most_ahead:
                    ahead.append(await self._submit(call, shares.popleft(), ranked, index))
                    index += 1
                stack, submission = ahead[0]
                events = self._mesh.events(submission, call.work.spec, call.deadline)
                async with aclosing(events):
                    async for event in events:
                        if event.WhichOneof("event") == "progress":
                            yield _progress(call, event.progress)
                            continue
                        for response in self._responses(call, event.outcome):
                            yield response
                        if time.monotonic() - told > _PROGRESS_SECONDS:
                            told = time.monotonic()
                            progress = gradients_pb2.Progress(
                                step="gradients", worker_id=event.outcome.worker_id
                            )
                            yield _Response(progress=_counted(call, progress))
                ahead.popleft()
                await stack.aclose()
        finally:
            for stack, _ in ahead:
                await stack.aclose()
        yield _Response(summary=_summary(call))

    async def _accept(
        self,
        request: gradients_pb2.ComputeGradientsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> _Call:
        mesh = self._mesh
        require_target(request.options)
        work = geometry_work_pb2.GradientsWork(
            model_id=request.model_id, spec=mesh.model(request.model_id), options=request.options
        )
        coordinates, shape = await mesh.coordinates(request.coordinates)
        if shape:
            work.coordinates.CopyFrom(coordinates)
        batched = len(shape) == 3
        return _Call(
            work,
            request_key("gradients", request.request_id, work),
            mesh.deadline(context),
            chunk_bytes_or_default(request.chunk_bytes),
            shape[0] if batched else 1,
            shape[1] if batched else 0,
            batched,
        )

    async def _submit(
        self, call: _Call, share: tuple[int, int], ranked: list[str], index: int
    ) -> tuple[AsyncExitStack, Submission]:
        mesh = self._mesh
        work = geometry_work_pb2.GradientsWork()
        work.CopyFrom(call.work)
        work.sample_start, work.sample_stop = share
        worker_id = mesh.router.choose(ranked, index)
        stack = AsyncExitStack()
        stack.enter_context(mesh.router.occupied(worker_id))
        try:
            submission = await stack.enter_async_context(
                mesh.client.submit(
                    mesh.queue,
                    GRADIENTS,
                    work,
                    lane=worker_id,
                    request_id=f"{call.request_id}:{share[0]}" if call.request_id else "",
                    deadline=call.deadline,
                    identity=caller(),
                )
            )
        except BaseException:
            await stack.aclose()
            raise
        return stack, submission

    def _responses(self, call: _Call, outcome: Any) -> Any:
        result = result_of(outcome, geometry_work_pb2.GradientsWorkResult)
        call.samples_done += len(result.samples)
        call.worker_ids.add(outcome.worker_id)
        call.bundle_ids.append(result.bundle_id)
        call.engine = result.engine
        for step in result.step_times:
            call.seconds[step.step] = call.seconds.get(step.step, 0.0) + step.seconds
        yield _Response(samples=gradients_pb2.SampleValues(samples=result.samples))
        with self._mesh.store.open(result.bundle_id) as content:
            for spec in result.tensors:
                yield from _chunks(call, spec, result.samples[0].sample, content)


def _shares(call: _Call) -> list[tuple[int, int]]:
    # They depend on the request alone, so that a repeated one finds its answers.
    if not call.batched:
        return [(0, 1)]
    size = max(1, _ATOMS_PER_SHARE // max(1, call.atoms))
    if call.work.options.target != gradients_pb2.TARGET_GEOMETRY and call.work.spec.reflections:
        size = max(1, size // _XRAY_FACTOR)
    size = min(size, _MOST_SAMPLES_PER_SHARE)
    return [(at, min(at + size, call.samples)) for at in range(0, call.samples, size)]


def _chunks(call: _Call, spec: tensor_pb2.TensorSpec, sample: int, content: Any) -> Any:
    """One tensor of a share, as chunks at its place in the whole tensor."""
    size = size_bytes(spec, max_bytes=2**62)
    per_sample = size // spec.shape[0]
    start = sample * per_sample
    header = None
    if spec.name not in call.tensors_begun:
        call.tensors_begun.add(spec.name)
        header = tensor_pb2.TensorHeader(
            total_bytes=per_sample * call.samples, chunk_bytes=call.chunk_bytes
        )
        header.spec.CopyFrom(spec)
        del header.spec.shape[:]
        header.spec.shape.extend([call.samples] if call.batched else [])
        header.spec.shape.extend(spec.shape[1:])
    for at in range(0, size, call.chunk_bytes):
        data = content.read(min(call.chunk_bytes, size - at))
        chunk = tensor_pb2.TensorChunk(
            header=header if at == 0 else None,
            name=spec.name,
            offset=start + at,
            data=data,
            crc32=zlib.crc32(data),
        )
        yield _Response(chunk=chunk)


def _progress(call: _Call, event: Any) -> _Response:
    progress = gradients_pb2.Progress()
    event.Unpack(progress)
    return _Response(progress=_counted(call, progress))


def _counted(call: _Call, progress: gradients_pb2.Progress) -> gradients_pb2.Progress:
    progress.samples_done = call.samples_done
    progress.samples_total = call.samples
    return progress


def _summary(call: _Call) -> gradients_pb2.GradientsSummary:
    return gradients_pb2.GradientsSummary(
        step_times=[
            gradients_pb2.StepTime(step=step, seconds=seconds)
            for step, seconds in call.seconds.items()
        ],
        bundle_ids=call.bundle_ids,
        engine=call.engine,
        worker_ids=sorted(call.worker_ids),
    )
