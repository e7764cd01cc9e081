"""Conversations to archive, and who looks for them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_OWNER, Visibility
from bxmesh.server.security.identities import EVERYTHING, Identity
from bxmesh.server.time_ids import time_id

ALICE = Identity("alice", "user", team="crystal")
BOB = Identity("bob", "user", team="crystal")
CAROL = Identity("carol", "user", team="other")
OPERATOR = Identity("root", "admin", frozenset({EVERYTHING}))

BEGIN = 1_790_000_000
_clock = itertools.count()


def at(seconds: float) -> Timestamp:
    """A time, in seconds after BEGIN."""
    time = Timestamp()
    time.FromMicroseconds(int((BEGIN + seconds) * 1e6))
    return time


def turn(text: str, number: int = 1, who: str = "ann", **fields: object) -> pb.Turn:
    return pb.Turn(turn=number, participant_id=who, text=text, **fields)  # type: ignore[arg-type]


def conversation(
    message: str,
    turns: Sequence[pb.Turn] = (),
    *,
    owner: str = "alice",
    state: pb.ConversationState = pb.CONVERSATION_STATE_COMPLETED,
    visibility: Visibility.ValueType = VISIBILITY_OWNER,
    labels: dict[str, str] | None = None,
    begin: float | None = None,
    revision: int = 1,
    name: str = "",
) -> pb.Conversation:
    """One that began later than those before, unless it is said when."""
    began = float(next(_clock)) if begin is None else begin
    made = pb.Conversation(
        conversation_id=name or time_id(),
        spec=pb.ConversationSpec(message=message, labels=labels or {}, visibility=visibility),
        state=state,
        turns=turns,
        owner=owner,
        create_time=at(began),
        revision=revision,
    )
    if state >= pb.CONVERSATION_STATE_COMPLETED:
        made.end_time.CopyFrom(at(began + 10))
    return made
