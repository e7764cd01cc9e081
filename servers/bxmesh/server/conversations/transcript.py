"""What participants are told of what was said."""

from __future__ import annotations

from collections.abc import Iterable

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client.conversations.question import Said

__all__ = ["earlier_than"]

# With the question it must go into the parameters of a task.
_MOST_BYTES = 256 << 10


def earlier_than(turns: Iterable[pb.Turn], turn: int) -> list[Said]:
    """Returns what was said before a turn, the oldest first; of what is too much only the latest."""
    said = [
        Said(turn=one.turn, participant_id=one.participant_id, text=one.text)
        for one in turns
        if one.turn < turn and one.text and not one.HasField("error")
    ]
    # Within a turn all have spoken at once; an order that does not depend on who was quick is fair.
    said.sort(key=lambda one: (one.turn, one.participant_id))
    room, kept = _MOST_BYTES, []
    for one in reversed(said):
        room -= len(one.text.encode(errors="replace")) + 64
        if room < 0:
            break
        kept.append(one)
    return kept[::-1]
