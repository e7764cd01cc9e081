"""How tasks end otherwise than with a result."""

# ruff: noqa: N818 - the classes are named like the states that they stand for

from __future__ import annotations

from typing import Any, TypeVar

import grpc

from bxmesh.client.agents.tasks import Task
from bxmesh.client.errors import BxmeshError

__all__ = ["TaskCancelled", "TaskFailed", "TaskTimedOut", "result_of"]

R = TypeVar("R")


class TaskFailed(BxmeshError):
    """A task ended without a result; its code and reason are those of what went wrong in it."""

    def __init__(self, task: Task) -> None:
        error = task.error
        what = "was cancelled" if task.state == "cancelled" else f"has {task.state}"
        super().__init__(
            f"task {task.task_id} ({task.task_type}) {what.replace('_', ' ')}"
            + (f": {error.message}" if error else ""),
            code=error.code if error else grpc.StatusCode.UNKNOWN,
            reason=error.reason if error else f"TASK_{task.state.upper()}",
            metadata={**(error.metadata if error else {}), "task_id": task.task_id},
            field_violations=error.field_violations if error else (),
            trace_id=error.trace_id if error else "",
        )
        self.task = task
        """The task as it ended."""


class TaskCancelled(TaskFailed):
    """A task was cancelled."""


class TaskTimedOut(TaskFailed):
    """A task ran out of its time."""


_CLASSES = {"cancelled": TaskCancelled, "timed_out": TaskTimedOut}


def result_of(task: Task, model: Any = None) -> Any:
    """Returns the result of a task that has ended, read as a model where there is one.

    Raises TaskFailed when it has none, PayloadMismatch when it does not fit.
    """
    if task.state != "completed":
        raise _CLASSES.get(task.state, TaskFailed)(task)
    return task.result if model is None else task.read_result(model)
