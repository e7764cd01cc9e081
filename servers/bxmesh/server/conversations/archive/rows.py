"""Conversations as rows, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive.words import words_of

__all__ = ["Rows", "conversation_of", "label_digest", "microseconds", "rows_of"]

# What fits into a column, whatever a Timestamp says.
_MOST = 1 << 62


class Rows(NamedTuple):
    """The rows of one conversation, by table."""

    conversation: dict[str, Any]
    labels: list[dict[str, Any]]
    messages: list[dict[str, Any]]


def rows_of(data: bytes, team: str) -> Rows:
    """Returns the rows of a serialized conversation that a team sees, empty for no team."""
    whole = pb.Conversation.FromString(data)
    turns = list(whole.turns)
    kept = pb.Conversation.FromString(data)
    kept.ClearField("turns")
    name = whole.conversation_id
    return Rows(
        {
            "conversation_id": name,
            "owner": whole.owner,
            "visibility": whole.spec.visibility,
            "team": team,
            "state": whole.state,
            "revision": whole.revision,
            "create_time": microseconds(whole.create_time),
            "end_time": microseconds(whole.end_time),
            "expire_time": microseconds(whole.expire_time),
            "conversation": kept.SerializeToString(deterministic=True),
        },
        [
            {"conversation_id": name, "label": label_digest(key, value)}
            for key, value in whole.spec.labels.items()
        ],
        [
            _message(whole, 0, pb.Turn(text=whole.spec.message), b""),
            *(
                _message(whole, place, turn, turn.SerializeToString(deterministic=True))
                for place, turn in enumerate(turns, 1)
            ),
        ],
    )


def _message(whole: pb.Conversation, place: int, turn: pb.Turn, said: bytes) -> dict[str, Any]:
    timed = turn.HasField("start_time") and turn.HasField("end_time")
    # Questions are nobody's answers, and no figures are made of them.
    end = microseconds(turn.end_time) if turn.participant_id else 0
    return {
        "conversation_id": whole.conversation_id,
        "place": place,
        "revision": whole.revision,
        "failed": int(turn.HasField("error")),
        # PostgreSQL's text holds no zero bytes.
        "model": turn.model.replace("\0", ""),
        "end_time": end,
        "duration": max(0, end - microseconds(turn.start_time)) if timed else -1,
        "tokens": turn.input_tokens + turn.output_tokens,
        "said": said,
        "words": words_of(turn.text),
        "vectors": "",
    }


def conversation_of(row: Row[Any], said: Iterable[bytes] = ()) -> pb.Conversation:
    """Returns the conversation of a row, with what was said where that is given."""
    conversation = pb.Conversation.FromString(row.conversation)
    conversation.turns.extend(pb.Turn.FromString(turn) for turn in said)
    return conversation


def label_digest(name: str, value: str) -> str:
    """Returns what stands for a label in the index."""
    return hashlib.sha256(f"{name}\0{value}".encode("utf-8", "replace")).hexdigest()


def microseconds(time: Timestamp) -> int:
    """Returns a time since 1970; 0 when it is not set."""
    return max(-_MOST, min(_MOST, time.seconds * 1_000_000 + time.nanos // 1000))
