"""Where conversations stand."""

from __future__ import annotations

from bxmesh.agent.v1 import conversation_pb2 as pb

__all__ = ["ENDED"]

ENDED = frozenset(
    {
        pb.CONVERSATION_STATE_COMPLETED,
        pb.CONVERSATION_STATE_FAILED,
        pb.CONVERSATION_STATE_CANCELLED,
    }
)
"""States in which nothing happens any more, until somebody continues."""
