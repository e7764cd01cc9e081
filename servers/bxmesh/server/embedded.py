"""A mesh for the time of a block: a `bxmesh serve` of its own, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from bxmesh.server.listening import SERVER_FILE

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0


class EmbeddedMeshError(RuntimeError):
    """The mesh did not start; the message holds the end of its log."""


class EmbeddedMesh:
    """Serves on a unix socket until the block ends.

    Without a state directory it uses a temporary one and leaves nothing behind.
    """

    def __init__(
        self,
        state_dir: Path | None = None,
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="bxmesh-", ignore_cleanup_errors=True)
            if state_dir is None
            else None
        )
        self.state_dir = state_dir or Path(self._temporary.name if self._temporary else "")
        self.address = ""
        self.log_path = self.state_dir / "server.log"
        self._workers = workers
        self._environment = {**os.environ, **(env or {})}
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server process."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> EmbeddedMesh:
        try:
            self.start()
        except BaseException:
            self.stop()
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._clean_up()

    def start(self) -> None:
        """Starts the server and waits until it listens; raises EmbeddedMeshError."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._environment["BXMESH_STATE_DIR"] = str(self.state_dir)
        listen = () if "--listen" in self._arguments else ("--listen", "unix:")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bxmesh.server.cli",
                    "serve",
                    "--with-parent",
                    "--workers",
                    str(self._workers),
                    *listen,
                    *self._arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                # It ends when this process does, by its standard input, and not by the terminal.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self.stop()
                raise EmbeddedMeshError(self._failure("The mesh ended while it started"))
            if self._listens():
                return
            time.sleep(0.02)
        self.stop()
        raise EmbeddedMeshError(self._failure("The mesh did not start in time"))

    def _clean_up(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def _listens(self) -> bool:
        try:
            server = json.loads((self.state_dir / SERVER_FILE).read_text())
        except (OSError, ValueError):
            return False
        self.address = server["address"]
        return self._process is not None and server["pid"] == self._process.pid

    def _failure(self, what: str) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"{what}. The end of its log:", *lines])

    def kill(self) -> None:
        """Kills the server process as with kill -9, and nothing else."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            _reap(process)

    def stop(self) -> None:
        """Stops the server as SIGTERM does."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        _reap(process)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
