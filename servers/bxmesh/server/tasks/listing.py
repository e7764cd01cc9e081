"""Pages of tasks, newest first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.server.errors import invalid_argument
from bxmesh.server.security.identities import Identity
from bxmesh.server.tasks.store import TaskStore

_DEFAULT_SIZE = 100
# A response fits into the 4 MiB that clients take.
_MOST_BYTES = 3 << 20
# So many are looked at for one page; what does not fit makes it shorter.
_MOST_LOOKED_AT = 50_000
_LOOKED_AT_ONCE = 500


async def list_tasks(
    store: TaskStore,
    request: pb.ListTasksRequest,
    identity: Identity | None,
    fits: Callable[[pb.Task], bool] = lambda task: True,
) -> pb.ListTasksResponse:
    """Returns a page of what an identity sees and `fits`; None means everybody's.

    A page may be shorter than asked for, and even empty, before the last one. Raises MeshError
    INVALID_ARGUMENT for a token that is none, or of other filters.
    """
    before = _start(request)
    not_before = _microseconds(request.start_time) if request.HasField("start_time") else 0
    if request.HasField("end_time"):
        end = max(1, _microseconds(request.end_time))
        before = min(before, end) if before else end
    wanted = json.dumps(
        {
            "states": list(request.states),
            "type": request.task_type,
            "agent": request.agent_id,
            "identity": identity.id if identity else "",
            "team": identity.team if identity else "",
        }
    )
    response = pb.ListTasksResponse()
    most, room = request.page_size or _DEFAULT_SIZE, _MOST_BYTES
    for _ in range(_MOST_LOOKED_AT // _LOOKED_AT_ONCE):
        done, last, records = await store.page(
            request.parent_task_id,
            before,
            not_before,
            wanted,
            most - len(response.tasks),
            max(1, room),
        )
        for record in records:
            task = record.task()
            wrong = (task.spec.labels.get(key) != value for key, value in request.labels.items())
            if any(wrong) or not fits(task):
                continue
            if response.tasks and task.ByteSize() > room:
                response.next_page_token = _token(request, before)
                return response
            room -= task.ByteSize()
            before = task.create_time.ToMicroseconds()
            response.tasks.append(task)
        if done:
            return response
        before = last
        if len(response.tasks) >= most or room <= 0:
            break
    response.next_page_token = _token(request, before)
    return response


def _microseconds(time: Timestamp) -> int:
    # Any numbers may be in it; those of no time at all are before or after all tasks.
    return time.seconds * 1_000_000 + time.nanos // 1000


def _start(request: pb.ListTasksRequest) -> int:
    if not request.page_token:
        return 0
    digest, _, created = request.page_token.partition(":")
    if digest != _digest(request) or not (created.isascii() and created.isdigit()):
        raise invalid_argument(
            "page_token",
            "is not the next_page_token of a page with these filters",
            reason="PAGE_TOKEN_INVALID",
        )
    return int(created[:16])


def _token(request: pb.ListTasksRequest, before: int) -> str:
    return f"{_digest(request)}:{before}"


def _digest(request: pb.ListTasksRequest) -> str:
    parts = (
        sorted(request.states),
        request.task_type,
        request.agent_id,
        request.parent_task_id,
        sorted(request.labels.items()),
        _microseconds(request.start_time),
        _microseconds(request.end_time),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
