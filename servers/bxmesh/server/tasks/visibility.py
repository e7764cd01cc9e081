"""Who sees a task."""

from __future__ import annotations

from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import sees
from bxmesh.server.tasks.records import Record

__all__ = ["sees_task"]


def sees_task(identity: Identity, record: Record) -> bool:
    """Whether an identity sees a task: its owner, whose agent had it, and with whom it is shared."""
    task = record.task()
    return sees(
        identity,
        task.owner,
        record.identity,
        visibility=task.spec.visibility,
        team=task.team,
    )
