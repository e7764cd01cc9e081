"""Where words stand, best first: FTS5 in SQLite, a GIN index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Text,
    bindparam,
    column,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from bxmesh.agent.v1.conversation_archive_pb2 import ConversationFilter
from bxmesh.server.conversations.archive.conditions import picked, visible
from bxmesh.server.database import Database
from bxmesh.server.database.tables import CONVERSATION_MESSAGES, CONVERSATIONS
from bxmesh.server.security.identities import Identity
from bxmesh.server.security.ownership import may_change

__all__ = ["find_words"]

_C, _M = CONVERSATIONS.c, CONVERSATION_MESSAGES.c
# Of words that stand in more places than that the newest are ranked: how long a search takes must not
# hang on how much is kept.
_MOST_RANKED = 20_000


async def find_words(
    database: Database,
    terms: Sequence[str],
    identity: Identity | None,
    wanted: ConversationFilter,
    most: int,
) -> list[int]:
    """Returns the messages with all words, or with any of them where none has all, the best first.
    The terms are those of `words.terms_of`, which have letters and digits only."""
    sqlite = database.dialect == "sqlite"
    search = _sqlite() if sqlite else _postgresql()
    places = select(search.place.label("place"), search.score.label("score")).where(search.matches)
    # Looking up each place takes longer than finding it.
    if not (identity is None or may_change(identity)) or wanted != ConversationFilter():
        places = (
            places.join(CONVERSATION_MESSAGES, _M.message_id == search.place)
            .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
            .where(visible(identity), picked(wanted))
        )
    ranked = places.order_by(search.place.desc()).limit(_MOST_RANKED).subquery()
    best = select(ranked.c.place).order_by(ranked.c.score.desc(), ranked.c.place.desc()).limit(most)

    async def find(operator: str) -> list[int]:
        query = operator.join(search.quoted.format(term) for term in terms)
        return await database.read(
            lambda connection: list(connection.scalars(best, {"query": query}))
        )

    return await find(search.all_of) or await find(search.any_of)


class _Search(NamedTuple):
    """How a database looks for words."""

    place: ColumnElement[int]
    score: ColumnElement[float]
    matches: ColumnElement[bool]
    quoted: str
    all_of: str
    any_of: str


def _sqlite() -> _Search:
    search = table("conversation_search", column("rowid", BigInteger), column("rank", Float))
    matches = literal_column("conversation_search").op("MATCH")(bindparam("query", type_=Text))
    # The better, the lower.
    return _Search(search.c.rowid, -search.c.rank, matches, '"{}"', " AND ", " OR ")


def _postgresql() -> _Search:
    search = table(
        "conversation_search", column("message_id", BigInteger), column("words", TSVECTOR)
    )
    query = func.to_tsquery("simple", bindparam("query", type_=Text))
    return _Search(
        search.c.message_id,
        func.ts_rank(search.c.words, query),
        search.c.words.op("@@")(query),
        "'{}'",
        " & ",
        " | ",
    )
