"""The queue that geometry services fill and geometry workers empty."""

from __future__ import annotations

from bxmesh.server.geometry.agent.capabilities import QUEUE
from bxmesh.server.settings import Settings
from bxmesh.server.streams import QueueOptions


def queue_options(settings: Settings) -> QueueOptions:
    """The queue's options; services and workers of one mesh must agree on them."""
    return QueueOptions(
        QUEUE,
        max_depth=settings.queue_depth,
        lease=settings.work_lease,
        max_attempts=settings.max_attempts,
        outcome_lifetime=settings.result_lifetime,
        seals=settings.seals,
    )
