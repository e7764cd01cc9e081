"""What can be wrong with tasks."""

from __future__ import annotations

import grpc

from bxmesh.server.errors import (
    MeshError,
    deadline_exceeded,
    failed_precondition,
    not_found,
    resource_exhausted,
    unavailable,
)


def no_such_task(task_id: str) -> MeshError:
    """Returns the error for a task that does not exist, no longer, or not for the caller."""
    return not_found(f"There is no task {task_id}.", reason="TASK_NOT_FOUND", task_id=task_id)


def not_yours(task_id: str) -> MeshError:
    """Returns the error for a report by who has not got the task, or no longer."""
    return failed_precondition(
        f"Task {task_id} is not this agent's (any more); stop working on it.",
        reason="LEASE_LOST",
        subject=task_id,
    )


def too_many_tasks(count: int) -> MeshError:
    """Returns the error for a mesh that has as many tasks as it takes."""
    return resource_exhausted(
        f"{count} tasks have not ended yet. Try again later.",
        retry_after=5.0,
        reason="TOO_MANY_TASKS",
        subject="tasks",
    )


def parent_ended(task_id: str) -> MeshError:
    """Returns the error for a task on behalf of one that has ended."""
    return failed_precondition(
        f"Task {task_id} has ended; nothing is done on its behalf any more.",
        reason="PARENT_ENDED",
        subject=task_id,
    )


def too_deep(most: int) -> MeshError:
    """Returns the error for a line of parents that is too long."""
    return failed_precondition(
        f"A task may have at most {most} parents above it.", reason="TASK_TOO_DEEP"
    )


def cycle(agent_ids: str) -> MeshError:
    """Returns the error for a task that would come back to an agent that waits for it."""
    return failed_precondition(
        f"The task would come back to {agent_ids}, on whose behalf it is done.",
        reason="TASK_CYCLE",
        agent_ids=agent_ids,
    )


def agent_lost(agent_id: str, why: str) -> MeshError:
    """Returns the error of an attempt whose agent is gone."""
    return unavailable(
        f"The agent {agent_id} had the task and {why}.", reason="AGENT_LOST", agent_id=agent_id
    )


def cancelled(reason: str, by: str) -> MeshError:
    """Returns the error of a task that was cancelled."""
    return MeshError(
        grpc.StatusCode.CANCELLED,
        "TASK_CANCELLED",
        f"The task was cancelled: {reason}" if reason else "The task was cancelled.",
        metadata={"cancelled_by": by},
    )


def timed_out() -> MeshError:
    """Returns the error of a task that ran out of its time."""
    return deadline_exceeded("The task was not done in its time.", reason="TASK_TIMED_OUT")


def nobody_came() -> MeshError:
    """Returns the error of a task that has waited too long for an agent."""
    return deadline_exceeded("No agent came that could do the task.", reason="NO_AGENT_CAME")
