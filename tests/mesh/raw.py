"""The mesh without its client: stubs that send anything, and a look behind the service."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from bxmesh.client.errors import from_rpc_error
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.geometry.v1.geometry_service_pb2_grpc import GeometryServiceStub
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.settings import Settings
from bxmesh.server.streams import QueueOptions, QueueStats, WorkQueue, connect
from bxmesh.tensor.v1 import tensor_pb2
from bxmesh.tensors import TensorAssembler, from_message, to_message

_MOST_BYTES = 1 << 30


@dataclass
class Answer:
    """All that ComputeGradients or one step answered."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    samples: list[gradients_pb2.SampleValue] = field(default_factory=list)
    progress: list[gradients_pb2.Progress] = field(default_factory=list)
    summary: gradients_pb2.GradientsSummary | None = None


class Raw:
    """Stubs with the admin key. What fails is raised as the client's error."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.stub = GeometryServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {key}"),)

    async def gradients(
        self,
        request: gradients_pb2.ComputeGradientsRequest,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> Answer:
        answer, assembler = Answer(), TensorAssembler(_MOST_BYTES)
        call = self.stub.ComputeGradients(request, metadata=self.metadata, timeout=timeout)
        try:
            async for response in call:
                match response.WhichOneof("event"):
                    case "chunk":
                        if finished := assembler.feed(response.chunk):
                            answer.arrays[finished.spec.name] = finished.array
                    case "samples":
                        answer.samples.extend(response.samples.samples)
                    case "progress":
                        answer.progress.append(response.progress)
                    case "summary":
                        answer.summary = response.summary
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
        assembler.finish()
        return answer

    def session(self) -> RawSession:
        return RawSession(self.stub.StreamGradients(metadata=self.metadata))

    async def unary(
        self,
        method: str,
        request: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> Any:
        try:
            return await getattr(self.stub, method)(
                request, metadata=self.metadata, timeout=timeout
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


class RawSession:
    """One stream of a session; leaving the block drops it without a farewell."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def __aenter__(self) -> RawSession:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.call.cancel()

    async def send(self, **message: Any) -> None:
        await self.call.write(gradients_pb2.StreamGradientsRequest(**message))

    async def open(
        self,
        model_id: str = "",
        session_id: str = "",
        answered_step_id: int | None = None,
        layout: gradients_pb2.Atom37Layout | None = None,
        **options: Any,
    ) -> Any:
        await self.send(
            open=gradients_pb2.OpenSession(
                model_id=model_id,
                session_id=session_id,
                answered_step_id=answered_step_id,
                options=gradients_pb2.GradientOptions(**options),
                atom37=layout,
            )
        )
        return (await self.receive()).opened

    async def step(self, step_id: int, sites: NDArray[Any] | None, **more: Any) -> None:
        tensor = None if sites is None else to_message(sites, "coordinates")
        await self.send(step=gradients_pb2.SessionStep(step_id=step_id, coordinates=tensor, **more))

    async def chunks(self, chunks: Iterable[tensor_pb2.TensorChunk]) -> None:
        for chunk in chunks:
            await self.send(chunk=chunk)

    async def receive(self) -> gradients_pb2.StreamGradientsResponse:
        try:
            response = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if response is grpc.aio.EOF:
            await self._raise_status()
            raise EOFError
        return response

    async def result(self) -> gradients_pb2.StepResult:
        return (await self.receive()).result

    async def _raise_status(self) -> None:
        if await self.call.code() is not grpc.StatusCode.OK:
            raise from_rpc_error(
                grpc.aio.AioRpcError(
                    await self.call.code(),
                    await self.call.initial_metadata(),
                    await self.call.trailing_metadata(),
                    await self.call.details(),
                )
            )


def gradient(result: gradients_pb2.StepResult, name: str = "geometry_sites") -> NDArray[Any]:
    """A gradient that a step's result holds."""
    (tensor,) = [tensor for tensor in result.gradients if tensor.spec.name == name]
    return from_message(tensor, max_bytes=_MOST_BYTES)


def damaged(chunk: tensor_pb2.TensorChunk) -> tensor_pb2.TensorChunk:
    """The chunk with a checksum that is not its own."""
    wrong = tensor_pb2.TensorChunk()
    wrong.CopyFrom(chunk)
    wrong.crc32 = zlib.crc32(chunk.data) ^ 1
    return wrong


@asynccontextmanager
async def raw(server: EmbeddedMesh) -> AsyncIterator[Raw]:
    key = (server.state_dir / "admin.key").read_text().strip()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Raw(channel, key)


@asynccontextmanager
async def work_queue(server: EmbeddedMesh) -> AsyncIterator[WorkQueue]:
    """The queue between the service and its workers."""
    run_dir = Settings(state_dir=server.state_dir).run_dir
    redis = connect(f"unix://{run_dir}/valkey.sock")
    try:
        yield WorkQueue(redis, QueueOptions("geometry"))
    finally:
        await redis.aclose()


async def stats(server: EmbeddedMesh) -> QueueStats:
    async with work_queue(server) as queue:
        return await queue.stats()


def noisy(sites: NDArray[Any], *batch: int, sigma: float = 0.05, seed: int = 0) -> NDArray[Any]:
    """The coordinates [N, 3] shaken, as [*batch, N, 3]."""
    generator = np.random.default_rng(seed)
    return sites + generator.normal(0.0, sigma, (*batch, *sites.shape))
