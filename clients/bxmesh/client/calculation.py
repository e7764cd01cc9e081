"""One calculation: the request out, progress and tensors in chunks back in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message
from numpy.typing import NDArray

from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import InternalError
from bxmesh.client.gradients import Gradients
from bxmesh.client.values import Progress
from bxmesh.geometry.v1 import gradients_pb2 as pb
from bxmesh.tensors import TensorAssembler, TensorError

__all__ = ["MAX_ANSWER_BYTES", "Answer", "calculate", "compute_gradients", "damaged"]

MAX_ANSWER_BYTES = 64 * 1024**3
"""The most that the tensors of one answer may take, in bytes."""


class Answer(NamedTuple):
    """What came of a calculation."""

    closing: Any
    """The summary that ends the stream, or the header that opens the tensors, of the contract."""
    tensors: dict[str, NDArray[Any]]
    """By name."""
    events: Sequence[Any]
    """What came besides: values of samples, steps of a minimization, as messages of the contract."""


def damaged(error: TensorError, trace_id: str = "") -> InternalError:
    """Returns the error for a tensor that arrived wrong."""
    return InternalError(
        f"the answer arrived damaged: {error.message}",
        code=grpc.StatusCode.DATA_LOSS,
        reason=error.reason,
        trace_id=trace_id,
    )


async def calculate(
    connection: Connection,
    method: Any,
    request: Message,
    seconds: float,
    *,
    on_progress: Callable[[Progress], object] | None = None,
    on_event: Callable[[Any], object] | None = None,
    trace_id: str = "",
) -> Answer:
    """Returns the answer to a request whose RPC, a method of `connection.geometry`, streams it.

    The request's id makes repeating it harmless. `on_event` is shown what is neither progress nor a
    tensor when it comes; after a repetition it may see some again. Raises BxmeshError.
    """

    async def attempt() -> Answer:
        answer = _Answer(on_progress, on_event)
        call = method(request, timeout=seconds, metadata=connection.metadata)
        try:
            with translated():
                async for response in call:
                    answer.take(response)
            return answer.finish()
        except TensorError as error:
            raise damaged(error, trace_id) from error
        finally:
            call.cancel()

    return await connection.retried(attempt)


async def compute_gradients(
    connection: Connection,
    request: pb.ComputeGradientsRequest,
    seconds: float,
    on_progress: Callable[[Progress], object] | None,
    trace_id: str,
) -> Gradients:
    """Returns the answer to a request. The request's id makes repeating it harmless."""
    summary, tensors, values = await calculate(
        connection,
        connection.geometry.ComputeGradients,
        request,
        seconds,
        on_progress=on_progress,
        trace_id=trace_id,
    )
    samples = [sample for each in values for sample in each.samples]
    return Gradients(tensors, samples, summary, trace_id)


class _Answer:
    def __init__(
        self,
        on_progress: Callable[[Progress], object] | None,
        on_event: Callable[[Any], object] | None,
    ) -> None:
        self._on_progress = on_progress
        self._on_event = on_event
        self._assembler = TensorAssembler(MAX_ANSWER_BYTES)
        self._tensors: dict[str, NDArray[Any]] = {}
        self._events: list[Any] = []
        self._closing: Any = None

    def take(self, response: Any) -> None:
        event = response.WhichOneof("event")
        match event:
            case "chunk":
                if finished := self._assembler.feed(response.chunk):
                    self._tensors[finished.spec.name] = finished.array
            case "progress":
                if self._on_progress is not None:
                    self._on_progress(Progress.from_message(response.progress))
            case "summary" | "header":
                self._closing = getattr(response, event)
            case str():
                self._events.append(getattr(response, event))
                if self._on_event is not None:
                    self._on_event(self._events[-1])

    def finish(self) -> Answer:
        self._assembler.finish()
        if self._closing is None:
            raise TensorError("ANSWER_TRUNCATED", "it ended without its summary")
        return Answer(self._closing, self._tensors, self._events)
