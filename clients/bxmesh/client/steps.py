"""The steps of a session, on their way out and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from numpy.typing import NDArray

from bxmesh.client.calculation import MAX_ANSWER_BYTES
from bxmesh.client.errors import BxmeshError, from_status
from bxmesh.client.gradients import Evaluation
from bxmesh.geometry.v1 import gradients_pb2 as pb
from bxmesh.tensors import TensorAssembler, from_message, to_chunks, to_message, to_spec

__all__ = ["Inbox", "Outbox", "PendingStep", "Step"]

_INLINE_BYTES = 2 * 1024 * 1024


class Step(Evaluation):
    """The answer to one step of a session."""

    def __init__(self, result: pb.StepResult, arrays: dict[str, NDArray[Any]]) -> None:
        super().__init__(arrays, result.samples)
        self.step_id = result.step_id
        """The number of the step in its session, from 0."""


class PendingStep:
    """A step that is not answered yet, kept so that it can be sent again."""

    def __init__(self, step_id: int, array: NDArray[Any], refresh_scales: bool) -> None:
        self.answer: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
        self._large: NDArray[Any] | None = None
        tensor = None
        if array.nbytes <= _INLINE_BYTES:
            tensor = to_message(array, "coordinates", "angstrom")
        else:
            self._large = array.copy()
        step = pb.SessionStep(step_id=step_id, coordinates=tensor, refresh_scales=refresh_scales)
        self._message = pb.StreamGradientsRequest(step=step)

    def messages(self) -> Iterator[pb.StreamGradientsRequest]:
        """Yields the step and, where its coordinates do not fit, their chunks."""
        yield self._message
        if self._large is not None:
            spec = to_spec(self._large, "coordinates", "angstrom")
            for chunk in to_chunks(self._large, spec):
                yield pb.StreamGradientsRequest(chunk=chunk)


class Outbox:
    """What goes out on one stream of a session, in order. The window of the session bounds it."""

    def __init__(self, opening: pb.OpenSession) -> None:
        self._opening = opening
        self._queue: asyncio.Queue[PendingStep | None] = asyncio.Queue()
        self._farewell = False

    def put(self, step: PendingStep) -> None:
        """Adds a step."""
        self._queue.put_nowait(step)

    def end(self, *, farewell: bool = False) -> None:
        """Ends the stream after what was put, and with a farewell the session too."""
        self._farewell = farewell
        self._queue.put_nowait(None)

    async def requests(self) -> AsyncIterator[pb.StreamGradientsRequest]:
        """Yields the messages to send."""
        yield pb.StreamGradientsRequest(open=self._opening)
        while (step := await self._queue.get()) is not None:
            for message in step.messages():
                yield message
        if self._farewell:
            yield pb.StreamGradientsRequest(close=pb.CloseSession())


class Inbox:
    """Puts the answers of one stream of a session together."""

    def __init__(self) -> None:
        self._assembler = TensorAssembler(MAX_ANSWER_BYTES)
        self._result = pb.StepResult()
        self._arrays: dict[str, NDArray[Any]] = {}
        self._missing: set[str] = set()

    def take(self, response: pb.StreamGradientsResponse) -> tuple[int, Step | BxmeshError] | None:
        """Returns the number of a step with its answer, once that is complete.

        TensorError for a tensor that arrived wrong.
        """
        if response.HasField("result"):
            result = response.result
            if result.HasField("error"):
                return result.step_id, from_status(result.error)
            self._result = result
            self._missing = set(result.chunked)
            self._arrays = {
                tensor.spec.name: from_message(tensor, max_bytes=MAX_ANSWER_BYTES)
                for tensor in result.gradients
            }
        elif finished := self._assembler.feed(response.chunk):
            self._arrays[finished.spec.name] = finished.array
            self._missing.discard(finished.spec.name)
        if self._missing:
            return None
        return self._result.step_id, Step(self._result, self._arrays)
