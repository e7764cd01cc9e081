"""What one watch of a task tells, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.tasks import errors
from bxmesh.server.tasks.keys import task_topic
from bxmesh.server.tasks.mechanism import Tasks
from bxmesh.server.tasks.records import Record

__all__ = ["follow"]

_LOOK_SECONDS = 60.0
_SLOW_SECONDS = 30.0


async def follow(
    tasks: Tasks,
    task_id: str,
    after: int,
    write: Callable[[pb.Task], Awaitable[None]],
    visible: Callable[[Record], bool],
) -> None:
    """Writes how a task stands, or its changes after a revision, until its end.

    Raises MeshError NOT_FOUND, OUT_OF_RANGE when the changes are not kept any more, RESOURCE_EXHAUSTED
    when the reader does not keep up, UNAVAILABLE without Redis. Of changes that come faster than
    they are read only the latest are told.
    """
    resumed = after > 0
    async with tasks.bells.watch(task_topic(task_id)) as bell:
        while True:
            bell.clear()
            found = await tasks.store.follow(task_id, after, tasks.bells.channel)
            if found is None or not visible(found[0]):
                raise errors.no_such_task(task_id)
            record, oldest, changes = found
            latest = record.change.revision
            if resumed and (after > latest or oldest > after + 1):
                raise _compacted(after)
            resumed = False
            for change in changes if after else [record.change]:
                await _send(write, record.task(change))
            after = latest
            if record.change.state >= pb.TASK_STATE_COMPLETED:
                return
            await bell.wait(_LOOK_SECONDS)


async def _send(write: Callable[[pb.Task], Awaitable[None]], task: pb.Task) -> None:
    try:
        async with asyncio.timeout(_SLOW_SECONDS):
            await write(task)
    except TimeoutError:
        raise resource_exhausted(
            f"Nothing has been read for {_SLOW_SECONDS:g} s. Resume the watch.",
            retry_after=0.0,
            reason="SLOW_CONSUMER",
            subject="watch",
        ) from None


def _compacted(after: int) -> MeshError:
    return MeshError(
        grpc.StatusCode.OUT_OF_RANGE,
        "REVISION_COMPACTED",
        f"The changes after revision {after} are not kept any more. Begin again at 0.",
        metadata={"after_revision": str(after)},
    )
