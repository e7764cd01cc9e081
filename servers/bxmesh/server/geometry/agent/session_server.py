"""Sessions on a worker: a listener that servers connect to, and a thread for each session.

A step must cost little more than its arithmetic, so it takes neither the event loop nor Redis: the thread
that reads the coordinates computes and answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context

from bxmesh.geometry.v1 import geometry_work_pb2, gradients_pb2
from bxmesh.server.bundles import BundleStore
from bxmesh.server.geometry import frames
from bxmesh.server.geometry.agent.calculations import (
    Calculations,
    announcer,
    unpack,
)
from bxmesh.server.geometry.agent.capabilities import SESSION
from bxmesh.server.geometry.agent.evaluation import Array, Evaluation
from bxmesh.server.geometry.agent.layouts import Layout, layout_of
from bxmesh.server.geometry.agent.session import Session
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.agent.warm_models import WarmModels
from bxmesh.server.geometry.coordinates import load_coordinates, save_coordinates
from bxmesh.server.geometry.session_record import SessionRecords
from bxmesh.server.streams import WorkContext

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
# More than the steps that a client may have under way.
_MOST_REFRESHES = 64


@dataclass(frozen=True)
class _Offer:
    """A session that was prepared for whoever brings the token."""

    work: geometry_work_pb2.OpenSessionWork
    identity: str
    evaluation: Evaluation
    layout: Layout
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
        evaluation, layout, opened = await self._calculations.in_thread(
            lambda: self._prepare(work, steps, context)
        )
        token = secrets.token_bytes(frames.TOKEN_BYTES)
        with self._guard:
            self._offers[token] = _Offer(
                work,
                context.item.identity,
                evaluation,
                layout,
                otel_context.get_current(),
                time.monotonic() + _CONNECT_SECONDS,
            )
        return geometry_work_pb2.OpenSessionWorkResult(
            opened=opened, address=self.address, token=token
        )

    def _prepare(
        self, work: geometry_work_pb2.OpenSessionWork, steps: Steps, context: WorkContext
    ) -> tuple[Evaluation, Layout, gradients_pb2.SessionOpened]:
        opened = gradients_pb2.SessionOpened(
            session_id=work.session_id,
            worker_id=self._worker_id,
        )
        with self._models.held(SESSION, context.item.item_id, context.item.identity):
            evaluation = Evaluation(self._models.get(work.spec, steps), work.options)
            layout = layout_of(work, evaluation.model.atoms, self._max_batch_bytes)
            layout.describe(opened)
            if work.scales_coordinates:
                sites = load_coordinates(self._store, work.scales_coordinates)
                evaluation.refresh_scales(np.array(sites, dtype=np.float64))
            evaluation.prepare(steps)
            opened.engine = evaluation.engine
            opened.atoms = len(evaluation.model.atoms)
            if evaluation.has_xray:
                value, _ = evaluation.evaluate(None, steps)
                opened.xray.CopyFrom(value.xray)
        return evaluation, layout, opened

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
                session = Session(
                    offer.work,
                    offer.identity,
                    offer.evaluation,
                    offer.layout,
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
