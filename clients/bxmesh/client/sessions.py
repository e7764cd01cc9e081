"""Sessions: coordinates in, gradients out, step after step, on a warm worker."""

from __future__ import annotations

import asyncio
from typing import Self

import grpc
from numpy.typing import ArrayLike

from bxmesh.client.calculation import damaged
from bxmesh.client.connection import Connection, translated
from bxmesh.client.errors import BxmeshError, Cancelled, DeadlineExceeded, Unavailable
from bxmesh.client.gradients import as_coordinates
from bxmesh.client.layouts import Atom37Map
from bxmesh.client.names import invalid
from bxmesh.client.options import ENGINES
from bxmesh.client.steps import Inbox, Outbox, PendingStep, Step
from bxmesh.client.trace import traced
from bxmesh.client.values import XrayValue
from bxmesh.geometry.v1 import gradients_pb2 as pb
from bxmesh.tensors import TensorError

__all__ = ["AsyncSession"]

_REATTACHES = 9
_FAREWELL_SECONDS = 5.0


class AsyncSession:
    """A session on the mesh; `async with` opens and closes it.

    A lost connection is resumed: the session re-attaches with its frozen scales, and steps that are
    not answered yet are sent again.
    """

    def __init__(
        self, connection: Connection, opening: pb.OpenSession, *, window: int, timeout: float
    ) -> None:
        if window < 1:
            raise invalid("window", f"a window of {window} steps is too small; 1 is the least")
        self._connection = connection
        self._opening = opening
        self._timeout = timeout
        self._room = asyncio.Semaphore(window)
        self._pending: dict[int, PendingStep] = {}
        self._next_step = 0
        self._opened = pb.SessionOpened()
        self._outbox: Outbox | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = False
        self._error: BxmeshError | None = None
        self.trace_id = ""
        """The trace of the session, 32 hexadecimal digits."""

    @property
    def session_id(self) -> str:
        """The session's name; empty before it is open."""
        return self._opened.session_id

    @property
    def worker_id(self) -> str:
        """The worker that serves it."""
        return self._opened.worker_id

    @property
    def atoms(self) -> int:
        """Atoms, N."""
        return self._opened.atoms

    @property
    def engine(self) -> str:
        """The engine that evaluates geometry."""
        return ENGINES.name(self._opened.engine)

    @property
    def xray(self) -> XrayValue | None:
        """The X-ray agreement at the start, where the target has it."""
        opened = self._opened
        return XrayValue.from_message(opened.xray) if opened.HasField("xray") else None

    @property
    def atom37(self) -> Atom37Map | None:
        """What of the layout atom37 is in the model; None in a session without it."""
        opened = self._opened
        return Atom37Map.from_message(opened.atom37) if opened.HasField("atom37") else None

    async def __aenter__(self) -> Self:
        if self._reader is not None:
            raise invalid("session", "a session can be opened once; ask the mesh for another")
        with traced("session") as self.trace_id:
            self._reader = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._timeout):
                await self._ready.wait()
            if self._error is not None:
                raise self._error
        except TimeoutError as error:
            await self._stop(self._reader)
            raise self._late("the session did not open") from error
        except BaseException:
            await self._stop(self._reader)
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the session for good; steps that are not answered fail with Cancelled."""
        if self._reader is None:
            return
        if self._outbox is not None and not self._closing:
            self._closing = True
            self._outbox.end(farewell=True)
            if not self._pending:
                await asyncio.wait([self._reader], timeout=_FAREWELL_SECONDS)
        await self._stop(self._reader)

    async def step(self, coordinates: ArrayLike, *, refresh_scales: bool = False) -> Step:
        """Returns energies and gradients at coordinates [N, 3] or [B, N, 3] in angstrom.

        With the layout atom37 both have [R, 37] in the place of [N].
        `refresh_scales` computes the X-ray scales anew at these coordinates before the step.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await (await self.submit(coordinates, refresh_scales=refresh_scales))
        except TimeoutError as error:
            raise self._late("the step was not answered") from error

    async def submit(
        self, coordinates: ArrayLike, *, refresh_scales: bool = False
    ) -> asyncio.Future[Step]:
        """Sends a step and returns the future of its answer; waits while the window is full."""
        places = ("R", "37") if self._opening.HasField("atom37") else ("N",)
        array = as_coordinates(coordinates, places)
        await self._room.acquire()
        if self._error is not None or self._reader is None or self._closing:
            self._room.release()
            raise self._error or invalid("session", "the session is not open; use `async with`")
        step_id = self._next_step
        self._next_step += 1
        pending = self._pending[step_id] = PendingStep(step_id, array, refresh_scales)
        if self._outbox is not None:
            self._outbox.put(pending)
        return pending.answer

    async def _run(self) -> None:
        error: BxmeshError = Cancelled(
            "the session is closed", code=grpc.StatusCode.CANCELLED, reason="SESSION_CLOSED"
        )
        try:
            while not self._closing:
                retries = _REATTACHES if self.session_id else None
                await self._connection.retried(self._attach, retries)
        except BxmeshError as failure:
            error = failure
        finally:
            self._error = error
            self._ready.set()
            for step_id in list(self._pending):
                self._resolve(step_id, error)

    async def _attach(self) -> None:
        """Serves one stream to its end. Raises Unavailable when it breaks before any answer."""
        opening = self._opening
        if self.session_id:
            opening = pb.OpenSession(session_id=self.session_id)
            first = min(self._pending, default=self._next_step)
            if first > 0:
                opening.answered_step_id = first - 1
        outbox, inbox = Outbox(opening), Inbox()
        answered = False
        call = self._connection.geometry.StreamGradients(
            outbox.requests(), metadata=self._connection.metadata
        )
        try:
            with translated():
                async for response in call:
                    if response.HasField("opened"):
                        self._attached(response.opened, outbox)
                    elif answer := inbox.take(response):
                        answered = True
                        self._resolve(*answer)
            if not (self._closing or answered):
                raise Unavailable(
                    "the mesh ended the session's stream",
                    code=grpc.StatusCode.UNAVAILABLE,
                    reason="STREAM_ENDED",
                    trace_id=self.trace_id,
                )
        except Unavailable:
            if not answered:
                raise
        except TensorError as error:
            raise damaged(error, self.trace_id) from error
        finally:
            self._outbox = None
            outbox.end()
            call.cancel()

    def _attached(self, opened: pb.SessionOpened, outbox: Outbox) -> None:
        self._opened = opened
        for pending in self._pending.values():
            outbox.put(pending)
        self._outbox = outbox
        self._ready.set()

    def _resolve(self, step_id: int, answer: Step | BxmeshError) -> None:
        pending = self._pending.pop(step_id, None)
        if pending is None:
            return
        self._room.release()
        if pending.answer.done():
            return
        if isinstance(answer, BxmeshError):
            answer.trace_id = answer.trace_id or self.trace_id
            pending.answer.set_exception(answer)
        else:
            pending.answer.set_result(answer)

    async def _stop(self, reader: asyncio.Task[None]) -> None:
        self._closing = True
        reader.cancel()
        await asyncio.wait([reader])

    def _late(self, what: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{what} within {self._timeout:g} s",
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            reason="DEADLINE_EXCEEDED",
            trace_id=self.trace_id,
        )
