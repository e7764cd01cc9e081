"""Who sees what, as words that any index can look for."""

from __future__ import annotations

import hashlib

from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_TEAM
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change

__all__ = ["seen_by", "seen_under"]

_ALL = "all"


def seen_by(owner: str, visibility: int, team: str) -> tuple[str, ...]:
    """Returns the words for those who see a conversation: `security.ownership.sees`, written down."""
    words = [_word("o", owner)]
    if visibility == VISIBILITY_ALL:
        words.append(_ALL)
    if visibility == VISIBILITY_TEAM and team:
        words.append(_word("t", team))
    return tuple(words)


def seen_under(identity: Identity | None) -> tuple[str, ...] | None:
    """Returns the words under which an identity sees what was said; None for who sees everything, as
    the server itself does, for which None stands."""
    if identity is None or may_change(identity):
        return None
    team = [_word("t", identity.team)] if identity.team else []
    return (_ALL, _word("o", identity.id), *team)


def _word(kind: str, name: str) -> str:
    # Names have characters that take words apart.
    return kind + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:32]
