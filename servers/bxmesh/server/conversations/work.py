"""The queue of conversations."""

from __future__ import annotations

from bxmesh.server.settings import Settings
from bxmesh.server.streams import QueueOptions

__all__ = ["KIND", "conversation_queue_options", "round_name"]

KIND = "conversation.round"
# An attempt only ends without the round when a server or what it needs is lost.
_MOST_ATTEMPTS = 100
_OUTCOME_SECONDS = 86400.0


def conversation_queue_options(settings: Settings) -> QueueOptions:
    """The queue's options; the servers of one mesh must agree on them."""
    return QueueOptions(
        "conversations",
        max_depth=settings.queue_depth,
        lease=settings.work_lease,
        max_attempts=_MOST_ATTEMPTS,
        outcome_lifetime=_OUTCOME_SECONDS,
        seals=settings.seals,
    )


def round_name(conversation_id: str, first_turn: int) -> str:
    """Names the item that is a round of a conversation, by the turn that it begins with."""
    return f"{conversation_id}.{first_turn}"
