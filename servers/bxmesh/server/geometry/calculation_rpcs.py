"""The RPCs of calculations that have one answer: a worker does them, the answer is streamed."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import IO, Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server.errors import internal
from bxmesh.server.geometry.agent.capabilities import CALCULATIONS
from bxmesh.server.geometry.inputs import named_bundles
from bxmesh.server.geometry.mesh import (
    GeometryMesh,
    caller,
    request_key,
    result_of,
    routing_key,
)
from bxmesh.server.geometry.sharing import require_target, seen_by_caller
from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensors import chunk_bytes_or_default, size_bytes

Context = grpc.aio.ServicerContext[Any, Any]

_R = TypeVar("_R", bound=Message)
_CHUNK_BYTES = chunk_bytes_or_default(0)


class CalculationRpcs:
    """ComputeStructureFactors, ComputeMap, ComputeRealSpaceGradients, ValidateModel, AnalyzeData,
    Minimize and ExportRestraints."""

    _mesh: GeometryMesh

    async def ComputeStructureFactors(
        self, request: pb.ComputeStructureFactorsRequest, context: Context
    ) -> AsyncIterator[pb.ComputeStructureFactorsResponse]:
        """Streams structure factors."""
        async for response in self._stream(request, context, pb.ComputeStructureFactorsResponse):
            yield response

    async def ComputeMap(
        self, request: pb.ComputeMapRequest, context: Context
    ) -> AsyncIterator[pb.ComputeMapResponse]:
        """Streams a map."""
        async for response in self._stream(request, context, pb.ComputeMapResponse):
            yield response

    async def ComputeRealSpaceGradients(
        self, request: pb.ComputeRealSpaceGradientsRequest, context: Context
    ) -> AsyncIterator[pb.ComputeRealSpaceGradientsResponse]:
        """Streams gradients of the density of a map."""
        async for response in self._stream(request, context, pb.ComputeRealSpaceGradientsResponse):
            yield response

    async def ValidateModel(
        self, request: pb.ValidateModelRequest, context: Context
    ) -> pb.ValidateModelResponse:
        """Says how good a model is."""
        return await self._answer(request, context, pb.ValidateModelResponse)

    async def AnalyzeData(
        self, request: pb.AnalyzeDataRequest, context: Context
    ) -> pb.AnalyzeDataResponse:
        """Says how good the reflections of a model are."""
        return await self._answer(request, context, pb.AnalyzeDataResponse)

    async def Minimize(
        self, request: pb.MinimizeRequest, context: Context
    ) -> AsyncIterator[pb.MinimizeResponse]:
        """Streams the steps of a minimization, and where it ends."""
        async for response in self._stream(request, context, pb.MinimizeResponse):
            yield response

    async def ExportRestraints(
        self, request: pb.ExportRestraintsRequest, context: Context
    ) -> AsyncIterator[pb.ExportRestraintsResponse]:
        """Streams the restraints of a model."""
        async for response in self._stream(request, context, pb.ExportRestraintsResponse):
            yield response

    async def _answer(self, request: Message, context: Context, response: type[_R]) -> _R:
        """Returns a summary that is the whole answer."""
        async with aclosing(self._calculation(request, context)) as events:
            async for event in events:
                if isinstance(event, geometry_work_pb2.CalculationWorkResult):
                    return _unpacked(event.summary, response)
        raise RuntimeError("the events of a calculation end with its result")

    async def _stream(
        self, request: Message, context: Context, response: type[_R]
    ) -> AsyncIterator[_R]:
        """Yields progress and whatever a calculation tells, its tensors, and its summary.

        A header comes before the tensors that it announces.
        """
        yield response(progress=gradients_pb2.Progress(step="queued"))
        async with aclosing(self._calculation(request, context)) as events:
            async for event in events:
                if not isinstance(event, geometry_work_pb2.CalculationWorkResult):
                    yield _wrapped(response, event)
                    continue
                opens = "header" in response.DESCRIPTOR.fields_by_name
                if opens:
                    yield _wrapped(response, event.summary)
                if event.bundle_id:
                    with self._mesh.store.open(event.bundle_id) as content:
                        for spec in event.tensors:
                            for chunk in _chunks(spec, content):
                                yield response(chunk=chunk)
                if not opens:
                    yield _wrapped(response, event.summary)

    async def _calculation(
        self, request: Any, context: Context
    ) -> AsyncGenerator[AnyMessage | geometry_work_pb2.CalculationWorkResult, None]:
        """Yields what is told on the way, then the result."""
        mesh = self._mesh
        kind = CALCULATIONS[type(request)]
        spec = mesh.model(request.model_id)
        for bundle_id in named_bundles(request):
            seen_by_caller(mesh.store, bundle_id)
        handed = type(request)()
        handed.CopyFrom(request)
        if "coordinates" in request.DESCRIPTOR.fields_by_name:
            coordinates, shape = await mesh.coordinates(request.coordinates)
            if shape:
                handed.coordinates.CopyFrom(coordinates)
        if isinstance(request, pb.MinimizeRequest):
            require_target(request.options)
        work = geometry_work_pb2.CalculationWork(model_id=request.model_id, spec=spec)
        work.request.Pack(handed, deterministic=True)
        deadline = mesh.deadline(context)
        worker_id = mesh.router.choose(await mesh.router.workers(routing_key(spec)))
        with mesh.router.occupied(worker_id):
            async with (
                mesh.client.submit(
                    mesh.queue,
                    kind,
                    work,
                    lane=worker_id,
                    request_id=request_key(kind, request.request_id, work),
                    deadline=deadline,
                    identity=caller(),
                ) as submission,
                aclosing(mesh.events(submission, spec, deadline)) as events,
            ):
                async for event in events:
                    if event.WhichOneof("event") == "progress":
                        yield event.progress
                    else:
                        yield result_of(event.outcome, geometry_work_pb2.CalculationWorkResult)


def _wrapped(response: type[_R], packed: AnyMessage) -> _R:
    """A response whose event is what was packed."""
    for field in response.DESCRIPTOR.oneofs_by_name["event"].fields:
        if field.message_type is not None and field.message_type.full_name == packed.TypeName():
            answer = response()
            packed.Unpack(getattr(answer, field.name))
            return answer
    raise internal(f"A worker told {packed.TypeName()}, which is no part of this answer.")


def _unpacked(packed: AnyMessage, kind: type[_R]) -> _R:
    message = kind()
    if not packed.Unpack(message):
        raise internal("A worker answered with something else than was asked for.")
    return message


def _chunks(spec: tensor_pb2.TensorSpec, content: IO[bytes]) -> Iterator[tensor_pb2.TensorChunk]:
    """A whole tensor, as chunks."""
    size = size_bytes(spec, max_bytes=2**62)
    header = tensor_pb2.TensorHeader(spec=spec, total_bytes=size, chunk_bytes=_CHUNK_BYTES)
    for at in range(0, size, _CHUNK_BYTES) if size else (0,):
        data = content.read(min(_CHUNK_BYTES, size - at))
        yield tensor_pb2.TensorChunk(
            header=header if at == 0 else None,
            name=spec.name,
            offset=at,
            data=data,
            crc32=zlib.crc32(data),
        )
