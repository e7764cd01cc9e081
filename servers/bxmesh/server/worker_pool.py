"""The geometry workers of this server: processes that are started again when they die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable

from bxmesh.server.occupation import occupation_path
from bxmesh.server.settings import Settings

_log = logging.getLogger(__name__)

HOST_CHARACTERS = 12
"""Of the host's name in that of a worker, which is that of its socket, too."""

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_GOOD_RUN = 60.0


OnDeath = Callable[[str], Awaitable[None]]
"""Told the id of a worker that died, so that its work goes on elsewhere at once."""


class WorkerPool:
    """Keeps a number of workers alive."""

    def __init__(self, settings: Settings, redis_url: str, on_death: OnDeath) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._on_death = on_death
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._killed: set[str] = set()
        self._stopping = False

    @property
    def pids(self) -> dict[str, int]:
        """The running processes by worker id."""
        return {worker_id: process.pid for worker_id, process in self._processes.items()}

    def kill(self, worker_id: str) -> None:
        """Ends a worker at once, for what it is at; another takes its place."""
        if process := self._processes.get(worker_id):
            self._killed.add(worker_id)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def start(self) -> None:
        """Starts the workers."""
        self._keepers = [
            asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)
        ]

    async def stop(self) -> None:
        """Lets the workers drain, then ends those that do not."""
        self._stopping = True
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=self._settings.drain_grace + 5.0)
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            for keeper in late:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping:
            host = (
                "".join(c if c.isalnum() or c in "-." else "-" for c in platform.node()) or "host"
            )
            worker_id = f"geometry-{host[:HOST_CHARACTERS]}-{number}-{uuid.uuid4().hex[:8]}"
            began = time.monotonic()
            code = await self._run(worker_id)
            if self._stopping:
                return
            _log.error("worker %s ended with %s; it is replaced", worker_id, code)
            await self._on_death(worker_id)
            if worker_id in self._killed or time.monotonic() - began > _GOOD_RUN:
                # Nothing says that the next one would not do well.
                pause = _FIRST_PAUSE
            self._killed.discard(worker_id)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    async def _run(self, worker_id: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bxmesh.server.geometry.agent",
            worker_id,
            stdin=asyncio.subprocess.PIPE,
            # Interrupts from the terminal are for the server, which then stops its workers.
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._processes[worker_id] = process
        try:
            assert process.stdin is not None
            process.stdin.write(self._configuration())
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            return await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        finally:
            del self._processes[worker_id]
            occupation_path(self._settings.run_dir, worker_id).unlink(missing_ok=True)

    def _configuration(self) -> bytes:
        values = self._settings.model_dump(mode="json")
        values["redis_url"] = self._redis_url
        return json.dumps(values).encode() + b"\n"
