"""Which rows an identity sees."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, true

from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_TEAM
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change

__all__ = ["seen_rows"]


def seen_rows(
    identity: Identity,
    owner: ColumnElement[Any],
    visibility: ColumnElement[Any],
    team: ColumnElement[Any],
) -> ColumnElement[bool]:
    """The condition that `security.ownership.sees` is, of columns."""
    if may_change(identity):
        return true()
    seen = (owner == identity.id) | (visibility == VISIBILITY_ALL)
    if identity.team:
        seen |= (visibility == VISIBILITY_TEAM) & (team == identity.team)
    return seen
