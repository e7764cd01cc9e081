"""The files of the activity log: by kind, UTC day and server process, in one directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from bxmesh.server.activity.events import KINDS

__all__ = ["DayFile", "Place", "read_lines"]

_NAME = re.compile(rf"(?:{'|'.join(KINDS)})-(\d{{4}}-\d\d-\d\d)(?:\.\d+)?\.jsonl", re.ASCII)
_MOST_PROCESSES = 1000


class Place:
    """A process's own names in a directory, for as long as it has it open. Methods raise OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = -1
        self._suffix = ""

    def open(self) -> None:
        """Makes the directory and takes the first place that no running process has.

        A process that is started again goes on with the files of the one before.
        """
        if self._lock >= 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(1, _MOST_PROCESSES + 1):
            path = self.directory / f".process-{number}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            except BaseException:
                os.close(lock)
                raise
            self._lock = lock
            self._suffix = f".{number}" if number > 1 else ""
            return
        raise OSError(f"{_MOST_PROCESSES} processes log to {self.directory} already")

    def path(self, kind: str, day: str) -> Path:
        """Where this process writes."""
        return self.directory / f"{kind}-{day}{self._suffix}.jsonl"

    def remove_before(self, today: str, days: int) -> None:
        """Removes the files, of all processes, that are more than so many days old."""
        oldest = (date.fromisoformat(today) - timedelta(days=days)).isoformat()
        for path in self.directory.iterdir():
            found = _NAME.fullmatch(path.name)
            if found and found[1] < oldest:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves the place to others."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class DayFile:
    """One open file, to which whole lines are added up to a size."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        """Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._most_bytes = most_bytes
        self._size = os.fstat(self._file).st_size
        # What was torn when the process before died stays alone on its line.
        torn = self._size and os.pread(self._file, 1, self._size - 1) != b"\n"
        self._start = b"\n" if torn else b""

    @property
    def gone(self) -> bool:
        """Whether somebody has removed it."""
        return os.fstat(self._file).st_nlink == 0

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Adds the first lines that there is room for; returns how many, and what was in the way."""
        room, count = self._most_bytes - self._size - len(self._start), 0
        for line in lines:
            room -= len(line)
            if room < 0:
                break
            count += 1
        if not count:
            return 0, None
        data, done = self._start + b"".join(lines[:count]), 0
        try:
            while done < len(data):
                done += os.write(self._file, data[done:])
        except OSError as error:
            whole = data.rfind(b"\n", 0, done) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size + whole)
            return data.count(b"\n", len(self._start), max(whole, len(self._start))), error
        self._size += done
        self._start = b""
        return count, None

    def close(self) -> None:
        """Closes it."""
        with contextlib.suppress(OSError):
            os.close(self._file)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what a file holds; a line that a crash has torn is skipped."""
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(value, dict):
                yield value
