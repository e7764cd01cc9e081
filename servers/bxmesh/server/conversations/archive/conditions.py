"""Which conversations: what an identity sees, what a filter picks, and where a page begins."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, false, true, tuple_

from bxmesh.agent.v1 import conversation_archive_pb2 as pb
from bxmesh.server.conversations.archive.rows import label_digest, microseconds
from bxmesh.server.database.tables import CONVERSATION_LABELS, CONVERSATIONS
from bxmesh.server.database.visibility import seen_rows
from bxmesh.server.pages import token_invalid
from bxmesh.server.security.identities import Identity

__all__ = ["behind", "picked", "place_of", "visible"]

_C, _L = CONVERSATIONS.c, CONVERSATION_LABELS.c


def visible(identity: Identity | None) -> ColumnElement[bool]:
    """The condition that `security.ownership.sees` is; None stands for the server itself."""
    if identity is None:
        return true()
    return seen_rows(identity, _C.owner, _C.visibility, _C.team)


def picked(wanted: pb.ConversationFilter) -> ColumnElement[bool]:
    """The condition of a filter."""
    conditions: list[ColumnElement[bool]] = [true()]
    if wanted.states:
        conditions.append(_C.state.in_(list(wanted.states)))
    for name, value in wanted.labels.items():
        conditions.append(
            exists().where(
                _L.conversation_id == _C.conversation_id, _L.label == label_digest(name, value)
            )
        )
    if wanted.HasField("start_time"):
        conditions.append(_C.create_time >= microseconds(wanted.start_time))
    if wanted.HasField("end_time"):
        conditions.append(_C.create_time < microseconds(wanted.end_time))
    if wanted.owner:
        # PostgreSQL's text holds no zero bytes.
        conditions.append(false() if "\0" in wanted.owner else _C.owner == wanted.owner)
    return and_(*conditions)


def place_of(create_time: int, conversation_id: str) -> str:
    """Returns where a conversation stands among others, for a token."""
    return f"{create_time}.{conversation_id}"


def behind(place: str, *, newest_first: bool) -> ColumnElement[bool]:
    """The condition for what comes after a place; all that there is for none.

    Raises MeshError INVALID_ARGUMENT (PAGE_TOKEN_INVALID) for a place that is none.
    """
    if not place:
        return true()
    time, _, name = place.partition(".")
    if not time.isascii() or not time.isdigit() or len(time) > 18 or not name:
        raise token_invalid()
    here, there = tuple_(_C.create_time, _C.conversation_id), tuple_(int(time), name)
    return here < there if newest_first else here > there
