"""What a worker process is at, for its parent to see: the worker itself may be in a loop for hours."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["Occupation", "Work", "occupation_path"]

_BYTES = 512


class Work(NamedTuple):
    """A piece of work under way."""

    capability: str
    """What it is a part of, such as geometry.gradients."""
    item_id: str
    """The work item, or the session."""
    identity_id: str
    """For whom; empty when that is not known."""
    began: float
    """When, in seconds of the monotonic clock, which all processes of a host share."""
    cpu_before: float
    """The CPU seconds that the process had taken when it began, less those taken for it."""


def occupation_path(run_dir: Path, worker_id: str) -> Path:
    """Returns the file in which a worker says what it is at."""
    return run_dir / f"{worker_id}.work"


class Occupation:
    """Says what this process is at, in a file. For whoever holds the lock of the work."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._current: Work | None = None

    @contextmanager
    def at(self, capability: str, item_id: str, identity_id: str) -> Iterator[None]:
        """Stands around a piece of work, or a part of one."""
        before = self._current
        self._say(Work(capability, item_id, identity_id, time.monotonic(), time.process_time()))
        try:
            yield
        finally:
            self._say(before)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Stands around a pause, in which another piece of work may be done."""
        current, cpu = self._current, time.process_time()
        self._say(None)
        try:
            yield
        finally:
            if current is not None:
                taken = time.process_time() - cpu
                current = current._replace(cpu_before=current.cpu_before + taken)
            self._say(current)

    def _say(self, work: Work | None) -> None:
        self._current = work
        text = json.dumps(work) if work else ""
        os.pwrite(self._file, text.encode()[:_BYTES].ljust(_BYTES), 0)

    @staticmethod
    def read(path: Path) -> Work | None:
        """Returns what a process is at; None when that is nothing, or cannot be read now."""
        try:
            # Whoever took the process over may have written anything.
            with path.open("rb") as file:
                values = json.loads(file.read(_BYTES))
            capability, item_id, identity_id = map(str, values[:3])
            return Work(capability, item_id, identity_id, float(values[3]), float(values[4]))
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None
