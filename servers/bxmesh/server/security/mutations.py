"""How a mutation of security records is made: once, whole, and with a line in the audit log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from bxmesh.server.errors import MeshError
from bxmesh.server.interceptors import current_identity
from bxmesh.server.streams.connection import redis_errors

from .addresses import address_of
from .events import AuditEvent
from .mesh import SecurityMesh
from .records import Change, ConflictError, Memo

__all__ = ["Plan", "aborted", "mutate"]

_TRIES = 30

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer", bound=Message)


class Plan(NamedTuple):
    """What a mutation does."""

    changes: Sequence[Change]
    answer: Message
    """What it answers when it is asked for again, without secrets."""
    event: AuditEvent


async def mutate(
    mesh: SecurityMesh,
    request: Any,
    context: Context,
    kind: type[Answer],
    plan: Callable[[], Plan],
) -> tuple[Answer, int, bool]:
    """Carries out what `plan` makes of the directory as it is; again when somebody was faster.

    Returns the answer, the revision, and whether it was made just now. Raises what `plan` raises,
    and MeshError ABORTED when others were faster each time.
    """
    method = type(request).__name__.removesuffix("Request")
    memo = Memo(current_identity().id, method, request.request_id)
    with redis_errors():
        mesh.mirror.check_fresh()
        first = await mesh.mirror.records.remembered(memo)
        if first is not None:
            return kind.FromString(first[1]), first[0], False
        for _ in range(_TRIES):
            changes, answer, event = plan()
            if not changes:
                return kind.FromString(answer.SerializeToString()), mesh.mirror.revision, True
            try:
                revision, before = await mesh.mirror.commit(
                    changes, memo, answer.SerializeToString()
                )
            except ConflictError:
                await mesh.mirror.catch_up()
                continue
            if before is not None:
                return kind.FromString(before), revision, False
            await mesh.events.audit(_by_caller(event, context, method))
            return kind.FromString(answer.SerializeToString()), revision, True
    raise aborted("Others change the same at this moment. Try again.")


def aborted(message: str) -> MeshError:
    """Returns the error for a mutation of what has changed meanwhile."""
    return MeshError(grpc.StatusCode.ABORTED, "REVISION_CHANGED", message)


def _by_caller(event: AuditEvent, context: Context, method: str) -> AuditEvent:
    return AuditEvent(
        event.event_type,
        current_identity().id,
        address_of(context.peer()),
        f"/bxmesh.security.v1.SecurityService/{method}",
        event.resource,
        event.outcome,
        event.details,
    )
