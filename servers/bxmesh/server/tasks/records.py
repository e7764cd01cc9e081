"""Tasks as the scripts hold them, and as messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.server.streams.mailboxes import QUEUE, TASK
from bxmesh.server.streams.queue import entry_of
from bxmesh.server.streams.seals import Seals
from bxmesh.work.v1 import work_pb2

# The last two hold what was reached by then, if their agent left anything.
_WITH_RESULT = (pb.TASK_STATE_COMPLETED, pb.TASK_STATE_CANCELLED, pb.TASK_STATE_TIMED_OUT)
_MOST_DELIVERIES = 100_000
_MOST_ERROR_BYTES = 16 << 10
_MOST_MESSAGE = 4096


class Change(NamedTuple):
    """What changes about a task, as it stood at one revision. Times are in microseconds, 0 for not
    yet."""

    revision: int
    state: int
    agent_id: bytes
    attempts: int
    progress: bytes
    progress_time: int
    error: bytes
    create_time: int
    update_time: int
    start_time: int
    end_time: int
    expire_time: int
    depth: int
    identity: bytes


class Record(NamedTuple):
    """A task as the scripts answer with it."""

    head: bytes
    result: bytes
    children: Sequence[bytes]
    change: Change

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Record:
        """Reads an answer."""
        return cls(answer[0], answer[1], answer[2], Change(*answer[3]))

    @property
    def identity(self) -> str:
        """Whose agent had it last; empty when none had."""
        return self.change.identity.decode()

    def task(self, change: Change | None = None) -> pb.Task:
        """The message, as it stands or stood."""
        at = change or self.change
        task = pb.Task.FromString(self.head)
        task.state = pb.TaskState.ValueType(at.state)
        task.agent_id = at.agent_id.decode()
        task.attempts, task.depth, task.revision = at.attempts, at.depth, at.revision
        if at.progress_time:
            task.progress.ParseFromString(at.progress)
            _set(task.progress.update_time, at.progress_time)
        if at.error:
            task.error.ParseFromString(at.error)
        if at.state in _WITH_RESULT and self.result:
            task.result.ParseFromString(self.result)
        task.child_task_ids.extend(child.decode() for child in self.children)
        _set(task.create_time, at.create_time)
        _set(task.update_time, at.update_time)
        for name in ("start_time", "end_time", "expire_time"):
            if value := getattr(at, name):
                _set(getattr(task, name), value)
        return task


def _set(time: Timestamp, microseconds: int) -> None:
    time.FromMicroseconds(microseconds)


def delivery_entry(task_id: str, attempt: int, identity: str, trace: str, seals: Seals) -> bytes:
    """What a mailbox holds for an attempt at a task, in the task's trace context (as JSON)."""
    item = work_pb2.WorkItem(
        item_id=f"{task_id}:{attempt}",
        kind=TASK,
        # The task knows how often it may be tried; a connection may be lost any number of times.
        max_attempts=_MOST_DELIVERIES,
        identity=identity,
        trace_context=json.loads(trace),
    )
    item.payload.Pack(work_pb2.TaskDelivery(task_id=task_id, attempt=attempt))
    item.enqueue_time.GetCurrentTime()
    return entry_of(item, QUEUE, seals)


def clipped(error: status_pb2.Status) -> status_pb2.Status:
    """An error that is small enough to be kept: of a large one its ErrorInfo, of a long text the
    beginning."""
    if error.ByteSize() <= _MOST_ERROR_BYTES:
        return error
    small = status_pb2.Status(code=error.code, message=error.message[:_MOST_MESSAGE])
    for detail in error.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) and detail.ByteSize() <= _MOST_MESSAGE:
            small.details.add().CopyFrom(detail)
            break
    return small
