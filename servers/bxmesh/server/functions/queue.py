"""The queue of durable executions."""

from __future__ import annotations

from bxmesh.server.settings import Settings
from bxmesh.server.streams import QueueOptions

__all__ = ["function_queue_options"]

_OUTCOME_SECONDS = 86400.0
_LONGEST_BACKOFF_SECONDS = 86400.0


def function_queue_options(settings: Settings) -> QueueOptions:
    """The queue's options; the servers of one mesh must agree on them."""
    return QueueOptions(
        "functions",
        max_depth=settings.queue_depth,
        lease=settings.work_lease,
        max_attempts=settings.max_attempts,
        # The handler says how long a retry waits, by the policy of its execution.
        retry_base=0.0,
        retry_cap=_LONGEST_BACKOFF_SECONDS,
        outcome_lifetime=_OUTCOME_SECONDS,
        seals=settings.seals,
    )
