"""Which failures Prefect tries again, and how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from bxmesh.client.errors import ResourceExhausted, Unavailable

__all__ = ["mesh_task", "retryable"]

P = ParamSpec("P")
R = TypeVar("R")

_RETRIES = 4


def retryable(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may be cured by time: the mesh is away, or it is full.

    Bad input, missing rights, a deadline and whatever is none of the mesh's fail at once.
    """
    return isinstance(state.data, Unavailable | ResourceExhausted)


def mesh_task(function: Callable[P, R]) -> Task[P, R]:
    """Makes a function a task that is tried again after about 1, 2, 4 and 8 seconds."""
    return Task(
        function,
        tags={"bxmesh"},
        retries=_RETRIES,
        retry_delay_seconds=exponential_backoff(1),
        retry_jitter_factor=0.5,
        retry_condition_fn=retryable,
    )
