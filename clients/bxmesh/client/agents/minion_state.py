"""What a minion tells of itself: the model of its state, and the record that it keeps."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from pydantic import BaseModel

from bxmesh.client.agents.retry import reason_of
from bxmesh.client.agents.tasks import Task

__all__ = [
    "MARK",
    "MinionError",
    "MinionRecord",
    "MinionState",
    "MinionStatus",
    "MinionTask",
    "ToolTimes",
]

MARK = {"kind": "minion"}
"""The metadata by which minions are found among agents."""

MinionStatus = Literal["idle", "working", "draining"]

_MOST_ERRORS = 10
_MOST_TASKS = 100
_MOST_TIMES = 200


class MinionTask(BaseModel):
    """A task that a minion is at."""

    task_id: str
    """The task."""
    task_type: str
    """The capability that it asks for."""
    since: datetime
    """When the minion began it."""
    percent: float = 0.0
    """How far it is, 0 to 100."""


class MinionError(BaseModel):
    """A task that failed; whoever sees the task finds there what was said."""

    task_id: str
    """The task."""
    task_type: str
    """The capability that it asked for."""
    reason: str
    """The kind of error, in UPPER_SNAKE."""
    time: datetime
    """When it failed."""


class ToolTimes(BaseModel):
    """How long the last tasks of a capability took that went well."""

    count: int
    """How many these are."""
    p50: float
    """The median in seconds."""
    p95: float
    """The 95th percentile in seconds."""


class MinionState(BaseModel):
    """What a minion shares: what it is at, and what became of what it did, over restarts."""

    status: MinionStatus = "idle"
    """What it does; draining takes nothing new."""
    version: str = ""
    """The version of its software."""
    load: float = 0.0
    """The part of its slots that is in use, 0 to 1."""
    tasks: list[MinionTask] = []
    """The tasks that it is at, of many the oldest."""
    done: int = 0
    """Tasks that went well."""
    failed: int = 0
    """Tasks that raised an error."""
    cancelled: int = 0
    """Tasks that were stopped: cancelled, out of time, or lost to another."""
    errors: list[MinionError] = []
    """The last failures, the latest at the end."""
    seconds: dict[str, ToolTimes] = {}
    """How long its tasks took, by capability, since it started."""


class MinionRecord:
    """The truth about a minion, of which the shared state is told now and then."""

    def __init__(self, before: MinionState, version: str, slots: int) -> None:
        self.changed = asyncio.Event()
        """Whether there is something to tell."""
        self.draining = False
        """Whether it takes nothing new."""
        self._version = version
        self._slots = slots
        self._done, self._failed, self._cancelled = before.done, before.failed, before.cancelled
        self._errors = deque(before.errors, maxlen=_MOST_ERRORS)
        self._tasks: dict[int, MinionTask] = {}
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_MOST_TIMES))

    @contextmanager
    def doing(self, task: Task) -> Iterator[None]:
        """Notes that a task is done in a block, and how that ends."""
        began, current = time.monotonic(), asyncio.current_task()
        entry = MinionTask(task_id=task.task_id, task_type=task.task_type, since=_now())
        # Not by its id: a task that was lost may come again before its end.
        self._tasks[id(entry)] = entry
        self.changed.set()
        try:
            yield
        except asyncio.CancelledError as error:
            if current is not None and current.cancelling():
                self._cancelled += 1
            else:
                self._note(entry, error)
            raise
        except Exception as error:
            self._note(entry, error)
            raise
        else:
            self._done += 1
            self._times[task.task_type].append(time.monotonic() - began)
        finally:
            del self._tasks[id(entry)]
            self.changed.set()

    def _note(self, entry: MinionTask, error: BaseException) -> None:
        self._failed += 1
        self._errors.append(
            MinionError(
                task_id=entry.task_id,
                task_type=entry.task_type,
                reason=reason_of(error),
                time=_now(),
            )
        )

    def progressed(self, task_id: str, percent: float) -> None:
        """Notes how far a task is."""
        for entry in self._tasks.values():
            if entry.task_id == task_id:
                entry.percent = percent
                self.changed.set()

    def state(self) -> MinionState:
        """Returns what there is to tell now."""
        self.changed.clear()
        status: MinionStatus = "working" if self._tasks else "idle"
        return MinionState(
            status="draining" if self.draining else status,
            version=self._version,
            load=min(len(self._tasks) / self._slots, 1.0),
            tasks=[task.model_copy() for task in islice(self._tasks.values(), _MOST_TASKS)],
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
            errors=list(self._errors),
            seconds={name: _figures(times) for name, times in sorted(self._times.items())},
        )


def _figures(times: deque[float]) -> ToolTimes:
    ordered = sorted(times)

    def at(part: float) -> float:
        return round(ordered[min(int(part * len(ordered)), len(ordered) - 1)], 6)

    return ToolTimes(count=len(ordered), p50=at(0.5), p95=at(0.95))


def _now() -> datetime:
    return datetime.now(UTC)
