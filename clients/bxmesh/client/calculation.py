"""One calculation: the request out, progress, samples and chunks back in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from numpy.typing import NDArray

from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import InternalError
from bxmesh.client.gradients import Gradients
from bxmesh.client.values import Progress
from bxmesh.geometry.v1 import gradients_pb2 as pb
from bxmesh.tensors import TensorAssembler, TensorError

__all__ = ["MAX_ANSWER_BYTES", "compute_gradients", "damaged"]

MAX_ANSWER_BYTES = 64 * 1024**3
"""The most that the tensors of one answer may take, in bytes."""


def damaged(error: TensorError, trace_id: str = "") -> InternalError:
    """Returns the error for a tensor that arrived wrong."""
    return InternalError(
        f"the answer arrived damaged: {error.message}",
        code=grpc.StatusCode.DATA_LOSS,
        reason=error.reason,
        trace_id=trace_id,
    )


async def compute_gradients(
    connection: Connection,
    request: pb.ComputeGradientsRequest,
    seconds: float,
    on_progress: Callable[[Progress], object] | None,
    trace_id: str,
) -> Gradients:
    """Returns the answer to a request. The request's id makes repeating it harmless."""

    async def attempt() -> Gradients:
        answer = _Answer(on_progress)
        call = connection.geometry.ComputeGradients(
            request, timeout=seconds, metadata=connection.metadata
        )
        try:
            with translated():
                async for response in call:
                    answer.take(response)
            return answer.gradients(trace_id)
        except TensorError as error:
            raise damaged(error, trace_id) from error
        finally:
            call.cancel()

    return await connection.retried(attempt)


class _Answer:
    def __init__(self, on_progress: Callable[[Progress], object] | None) -> None:
        self._on_progress = on_progress
        self._assembler = TensorAssembler(MAX_ANSWER_BYTES)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._samples: list[pb.SampleValue] = []
        self._summary: pb.GradientsSummary | None = None

    def take(self, response: pb.ComputeGradientsResponse) -> None:
        match response.WhichOneof("event"):
            case "chunk":
                if finished := self._assembler.feed(response.chunk):
                    self._arrays[finished.spec.name] = finished.array
            case "samples":
                self._samples.extend(response.samples.samples)
            case "progress":
                if self._on_progress is not None:
                    self._on_progress(Progress.from_message(response.progress))
            case "summary":
                self._summary = response.summary

    def gradients(self, trace_id: str) -> Gradients:
        self._assembler.finish()
        if self._summary is None:
            raise TensorError("ANSWER_TRUNCATED", "it ended without its summary")
        return Gradients(self._arrays, self._samples, self._summary, trace_id)
