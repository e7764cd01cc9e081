"""StreamGradients: the server stands between a client and the worker of its session."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc

from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server.errors import (
    MeshError,
    deadline_exceeded,
    invalid_argument,
    not_found,
    resource_exhausted,
    unavailable,
)
from bxmesh.server.geometry import frames
from bxmesh.server.geometry.agent.capabilities import OPEN_SESSION
from bxmesh.server.geometry.mesh import GeometryMesh, caller, result_of, routing_key
from bxmesh.server.geometry.sharing import require_target
from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.ending import end_tasks
from bxmesh.server.streams.stopped import why_stopped

_Request = gradients_pb2.StreamGradientsRequest
_Response = gradients_pb2.StreamGradientsResponse

_MOST_UNANSWERED = 32
_MOST_UNANSWERED_BYTES = 64 * 1024 * 1024
_NEVER = 2**63 - 1
_READ_LIMIT = 1024 * 1024
_MOST_WORKERS = 5
_WORKER_GONE = (asyncio.IncompleteReadError, ConnectionError)


class SessionRpcs:
    """The RPC that serves sessions."""

    _mesh: GeometryMesh

    async def StreamGradients(
        self,
        request_iterator: AsyncIterator[_Request],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[_Response]:
        """Opens or re-attaches a session and relays its steps; a worker that dies is replaced."""
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("open"):
            raise invalid_argument("open", "the first message must open the session.")
        session = _Session(self._mesh, context)
        await session.begin(first.open)
        async with contextlib.aclosing(session):
            yield _Response(opened=session.opened)
            async with contextlib.aclosing(session.relay(request_iterator)) as responses:
                async for response in responses:
                    yield response


class _Session:
    """One stream of a session: what is under way, and the connection to the worker."""

    def __init__(self, mesh: GeometryMesh, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._mesh = mesh
        self._context = context
        self._session_id = ""
        self._record = geometry_work_pb2.SessionRecord()
        self._unanswered: deque[tuple[int, list[bytes]]] = deque()
        self._unanswered_bytes = 0
        self._room = asyncio.Event()
        self._ended = False
        self._closing = False
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._occupied = contextlib.ExitStack()
        self._first_step = _NEVER
        self.opened = gradients_pb2.SessionOpened()

    async def begin(self, request: gradients_pb2.OpenSession) -> None:
        """Opens a new session or takes one up again."""
        mesh = self._mesh
        if request.session_id:
            record = await mesh.sessions.load(request.session_id)
            if record is None or record.owner != caller():
                raise not_found(
                    f"There is no session {request.session_id}, or no longer; open a new one.",
                    reason="SESSION_NOT_FOUND",
                )
            self._session_id, self._record = request.session_id, record
            if request.HasField("answered_step_id"):
                self._first_step = request.answered_step_id + 1
        elif request.model_id:
            require_target(request.options)
            self._session_id = uuid.uuid4().hex
            self._record = geometry_work_pb2.SessionRecord(
                model_id=request.model_id,
                spec=mesh.model(request.model_id),
                options=request.options,
                owner=caller(),
                atom37=request.atom37 if request.HasField("atom37") else None,
            )
        else:
            raise invalid_argument("open.model_id", "name a model or a session.")
        await mesh.sessions.save(self._session_id, self._record)
        try:
            await self._connect()
        except BaseException:
            if not request.session_id:
                await mesh.sessions.forget(self._session_id)
            raise

    async def relay(self, requests: AsyncIterator[_Request]) -> AsyncGenerator[_Response, None]:
        """Passes messages on in both directions until the client has ended and all is answered."""
        sender = asyncio.create_task(self._send_all(requests))
        keeper = asyncio.create_task(self._keep())
        lost = 0
        try:
            while True:
                assert self._reader is not None
                try:
                    response = await frames.read(self._reader, _Response)
                except _WORKER_GONE:
                    if sender.done():
                        sender.result()
                        if not self._unanswered:
                            return
                    lost += 1
                    await self._replace_worker(lost)
                    continue
                if response.HasField("result"):
                    lost = 0
                    self._note_answer(response.result)
                yield response
        finally:
            await end_tasks(sender, keeper)
            await asyncio.gather(sender, return_exceptions=True)

    async def aclose(self) -> None:
        """Hangs up; the worker stops after the sample it is at."""
        self._hang_up()
        if self._closing:
            with contextlib.suppress(MeshError):
                await self._mesh.sessions.forget(self._session_id)

    async def _send_all(self, requests: AsyncIterator[_Request]) -> None:
        """Sends on what the client sends, then ends, as the worker does when it has answered."""
        try:
            await self._send_each(requests)
        except BaseException:
            self._hang_up()
            raise
        self._ended = True
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.write_eof()

    async def _send_each(self, requests: AsyncIterator[_Request]) -> None:
        last_step = -1
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "open":
                raise invalid_argument("open", "the session is open already.")
            if kind == "close":
                self._closing = True
                return
            frame = frames.encode(request)
            if kind == "step":
                if request.step.step_id <= last_step:
                    raise invalid_argument(
                        "step.step_id", f"must grow; {request.step.step_id} came after {last_step}."
                    )
                last_step = request.step.step_id
                await self._wait_for_room()
                self._unanswered.append((last_step, [frame]))
            elif self._unanswered and self._unanswered[-1][0] == last_step:
                self._unanswered[-1][1].append(frame)
            else:
                continue  # The rest of a tensor whose step was refused.
            self._unanswered_bytes += len(frame)
            await self._write(frame)

    async def _wait_for_room(self) -> None:
        while (
            len(self._unanswered) >= _MOST_UNANSWERED
            or self._unanswered_bytes > _MOST_UNANSWERED_BYTES
        ):
            self._room.clear()
            await self._room.wait()

    async def _write(self, frame: bytes) -> None:
        writer = self._writer
        if writer is None:
            return  # It is being replaced; what is unanswered is sent again then.
        with contextlib.suppress(ConnectionError):
            writer.write(frame)
            await writer.drain()

    def _note_answer(self, result: gradients_pb2.StepResult) -> None:
        while self._unanswered and self._unanswered[0][0] <= result.step_id:
            _, sent = self._unanswered.popleft()
            self._unanswered_bytes -= sum(map(len, sent))
        self._first_step = result.step_id + 1
        self._room.set()

    async def _keep(self) -> None:
        """Keeps the session's record while a client is attached, busy or not."""
        while True:
            await asyncio.sleep(self._mesh.sessions.idle_seconds / 3)
            with contextlib.suppress(MeshError):
                await self._mesh.sessions.touch(self._session_id)

    def _scales(self) -> str:
        """The coordinates whose scales hold at the first step that the worker will see."""
        first = self._unanswered[0][0] if self._unanswered else self._first_step
        held = [each for each in self._record.refreshes if each.step_id < first]
        return held[-1].coordinates if held else ""

    async def _replace_worker(self, lost: int) -> None:
        queue = self._mesh.queue
        with redis_errors():
            stopped = await why_stopped(queue.redis, queue.keys, self._session_id)
        if stopped is not None:
            raise stopped
        if lost > _MOST_WORKERS:
            raise unavailable(
                "Several workers in a row were lost at this step.",
                retry_after=1.0,
                reason="WORKERS_LOST",
            )
        self._hang_up()
        record = await self._mesh.sessions.load(self._session_id)
        if record is not None:
            self._record = record
        await self._connect()

    async def _connect(self) -> None:
        for attempt in range(_MOST_WORKERS):
            result = await self._prepare()
            try:
                self._reader, writer = await _dial(result)
            except OSError:
                # The worker died between its answer and our call.
                self._occupied.close()
                await asyncio.sleep(0.1 * 2**attempt)
                continue
            self.opened = result.opened
            self.opened.expire_time.FromNanoseconds(
                int((time.time() + self._mesh.sessions.idle_seconds) * 1e9)
            )
            await self._send_unanswered(writer)
            return
        raise unavailable("No worker keeps the session.", retry_after=1.0, reason="WORKERS_LOST")

    async def _send_unanswered(self, writer: asyncio.StreamWriter) -> None:
        # The client may send on meanwhile; the writer is handed over when nothing is left behind.
        sent = 0
        with contextlib.suppress(ConnectionError):
            while rest := [f for _, each in self._unanswered for f in each][sent:]:
                writer.writelines(rest)
                sent += len(rest)
                await writer.drain()
            if self._ended:
                writer.write_eof()
        self._writer = writer

    async def _prepare(self) -> geometry_work_pb2.OpenSessionWorkResult:
        mesh, record = self._mesh, self._record
        work = geometry_work_pb2.OpenSessionWork(
            session_id=self._session_id,
            model_id=record.model_id,
            spec=record.spec,
            options=record.options,
            scales_coordinates=self._scales(),
            atom37=record.atom37 if record.HasField("atom37") else None,
        )
        deadline = mesh.deadline(self._context)
        if deadline <= time.time():
            raise deadline_exceeded("The session's deadline has passed.")
        ranked = await mesh.router.workers(routing_key(record.spec))
        while True:
            worker_id = mesh.router.least_busy(ranked)
            async with mesh.client.submit(
                mesh.queue, OPEN_SESSION, work, lane=worker_id, deadline=deadline, identity=caller()
            ) as submission:
                outcome = await mesh.outcome(submission, record.spec, deadline)
            result = result_of(outcome, geometry_work_pb2.OpenSessionWorkResult)
            if result.address:
                self._occupied.enter_context(mesh.router.occupied(outcome.worker_id))
                return result
            full = {worker_id, outcome.worker_id}
            ranked = [each for each in ranked if each not in full]
            if not ranked:
                raise resource_exhausted(
                    "Every worker serves as many sessions as it may. Try again later.",
                    retry_after=1.0,
                    reason="TOO_MANY_SESSIONS",
                    subject="sessions",
                )

    def _hang_up(self) -> None:
        self._occupied.close()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


async def _dial(
    result: geometry_work_pb2.OpenSessionWorkResult,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if result.address.startswith("unix:"):
        path = result.address.removeprefix("unix:")
        reader, writer = await asyncio.open_unix_connection(path, limit=_READ_LIMIT)
    else:
        host, _, port = result.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=_READ_LIMIT)
        # Closing resets the connection: the worker would not tell a mere end from a half-close.
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.write(result.token)
    return reader, writer
