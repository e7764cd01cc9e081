"""The log itself: a bounded queue, and a thread that writes what is in it."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from opentelemetry.metrics import CallbackOptions, Observation

from bxmesh.server import telemetry
from bxmesh.server.activity.events import Event, day_of, gap
from bxmesh.server.activity.files import DayFile, Place

__all__ = ["ActivityLog"]

_log = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0
_TIDY_SECONDS = 3600.0
# A disk that hangs must not keep the process.
_STOP_SECONDS = 5.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class ActivityLog:
    """Writes events in batches, about once a second.

    It never blocks who adds to it: when the queue or the disk is full, lines are dropped and
    counted, and when it works again a line says how many are missing at that place.
    """

    def __init__(
        self,
        directory: Path,
        *,
        days: int = 30,
        most_bytes: int = 256 << 20,
        most_waiting: int = 32_768,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Takes how long files are kept, how large one may be, and how many lines may wait."""
        self.dropped: Counter[str] = Counter()
        """Lines that were not written, by cause: queue, disk or size."""
        self._place = Place(directory)
        self._days = days
        self._most_bytes = most_bytes
        self._most_waiting = most_waiting
        self._clock = clock
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()
        self._missing: Counter[str] = Counter()
        self._files: dict[tuple[str, str], DayFile] = {}
        self._working = True
        self._tidied_day, self._next_tidy = "", 0.0
        self._wake = threading.Event()
        self._stopping = False
        # A daemon: nothing else ends a write to a disk that hangs.
        self._thread = threading.Thread(target=self._run, name="activity-log", daemon=True)
        telemetry.meter().create_observable_counter(
            "bxmesh.activity.dropped",
            [self._observe],
            "{line}",
            "Lines of the activity log that were not written",
        )

    @property
    def waiting(self) -> int:
        """How many lines are not written yet."""
        return len(self._waiting)

    def add(self, event: Event) -> None:
        """Takes an event in, or drops it."""
        waiting = len(self._waiting)
        if waiting >= self._most_waiting:
            self._drop(event.kind, 1, "queue")
            return
        self._waiting.append(event)
        if waiting == self._most_waiting // 2:
            self._wake.set()

    def start(self) -> None:
        """Begins to write; raises OSError when the directory is of no use, other than for lack of
        space."""
        try:
            self._place.open()
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            self._failed(error)
        self._thread.start()

    def stop(self) -> None:
        """Writes what waits, and ends."""
        self._stopping = True
        self._wake.set()
        self._thread.join(_STOP_SECONDS)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {"bxmesh.activity.cause": cause})
            for cause, count in tuple(self.dropped.items())
        ]

    def _drop(self, kind: str, count: int, cause: str) -> None:
        if count:
            with self._lock:
                self.dropped[cause] += count
                self._missing[kind] += count

    # In the thread

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(_FLUSH_SECONDS)
            self._wake.clear()
            self._round()
        self._round()
        for file in self._files.values():
            file.close()
        self._place.close()

    def _round(self) -> None:
        try:
            self._flush()
            self._tidy()
        except Exception:
            _log.exception("the activity log failed; some of it is lost")

    def _flush(self) -> None:
        now = self._clock()
        today = day_of(now)
        pages: dict[tuple[str, str], list[bytes]] = {}
        for _ in range(len(self._waiting)):
            event = self._waiting.popleft()
            pages.setdefault((event.kind, event.day), []).append(event.line())
        for kind in tuple(self._missing):
            if not any(kind == written for written, _ in pages):
                pages[kind, today] = []
        for (kind, day), lines in pages.items():
            self._write(kind, day, lines, now)
        for key in [key for key in self._files if key[1] != today]:
            self._close(key)

    def _write(self, kind: str, day: str, lines: Sequence[bytes], now: float) -> None:
        with self._lock:
            missing = self._missing.pop(kind, 0)
        first = (gap(missing, now),) if missing else ()
        written, error = self._append((kind, day), (*first, *lines))
        if missing and not written:
            with self._lock:
                self._missing[kind] += missing
        unwritten = len(lines) - max(0, written - len(first))
        if error is not None:
            self._close((kind, day))
            self._failed(error)
            self._drop(kind, unwritten, "disk")
            return
        self._drop(kind, unwritten, "size")
        if written and not self._working:
            self._working = True
            _log.warning("activity is logged again")

    def _append(self, key: tuple[str, str], lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        try:
            self._place.open()
            if key in self._files and self._files[key].gone:
                self._close(key)
            if key not in self._files:
                self._files[key] = DayFile(self._place.path(*key), self._most_bytes)
        except OSError as error:
            return 0, error
        return self._files[key].write(lines)

    def _close(self, key: tuple[str, str]) -> None:
        if file := self._files.pop(key, None):
            file.close()

    def _failed(self, error: OSError) -> None:
        if self._working:
            _log.warning("activity is not logged: %s", error)
        self._working = False

    def _tidy(self) -> None:
        now = self._clock()
        today = day_of(now)
        if today == self._tidied_day and now < self._next_tidy:
            return
        self._tidied_day, self._next_tidy = today, now + _TIDY_SECONDS
        try:
            self._place.remove_before(today, self._days)
        except OSError as error:
            _log.warning("old activity is not removed: %s", error)
