"""Where words stand, best first: FTS5 in SQLite, a GIN index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Text,
    and_,
    bindparam,
    column,
    func,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from bxmesh.agent.v1.conversation_archive_pb2 import ConversationFilter
from bxmesh.server.conversations.archive.conditions import picked
from bxmesh.server.conversations.archive.seeing import seen_under
from bxmesh.server.database import Database
from bxmesh.server.database.tables import CONVERSATION_MESSAGES, CONVERSATIONS
from bxmesh.server.security.identities import Identity

__all__ = ["find_words"]

_C, _M = CONVERSATIONS.c, CONVERSATION_MESSAGES.c
# Of words that stand in more places than that the newest are ranked: how long a search takes must not
# hang on how much is kept.
_MOST_RANKED = 5_000


class _Search(NamedTuple):
    """How a database looks for words."""

    place: ColumnElement[int]
    score: ColumnElement[float]
    matches: ColumnElement[bool]
    query: Callable[[Iterable[str], str], str]
    """Makes a query of words, and of `and` or `or`."""


async def find_words(
    database: Database,
    terms: Sequence[str],
    identity: Identity | None,
    wanted: ConversationFilter,
    most: int,
) -> list[int]:
    """Returns the messages with all words, or with any of them where none has all, the best first.
    The terms are those of `words.terms_of`, which have letters and digits only."""
    seen = seen_under(identity)
    search = (_sqlite if database.dialect == "sqlite" else _postgresql)(restricted=seen is not None)
    places = select(search.place.label("place"), search.score.label("score")).where(search.matches)
    # Looking up each place takes longer than finding it.
    if wanted != ConversationFilter():
        places = (
            places.join(CONVERSATION_MESSAGES, _M.message_id == search.place)
            .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
            .where(picked(wanted))
        )
    ranked = places.order_by(search.place.desc()).limit(_MOST_RANKED).subquery()
    best = select(ranked.c.place).order_by(ranked.c.score.desc(), ranked.c.place.desc()).limit(most)

    async def find(operator: str) -> list[int]:
        values = {"words": search.query(terms, operator)}
        if seen is not None:
            values["sees"] = search.query(seen, "or")
        return await database.read(lambda connection: list(connection.scalars(best, values)))

    return await find("and") or await find("or")


def _sqlite(*, restricted: bool) -> _Search:
    search = table("conversation_search", column("rowid", BigInteger))
    query: ColumnElement[str] = literal("words : (").concat(bindparam("words", type_=Text))
    if restricted:
        query = query.concat(") AND sees : (").concat(bindparam("sees", type_=Text))
    return _Search(
        search.c.rowid,
        # The better, the lower; who sees it does not count.
        -func.bm25(literal_column("conversation_search"), 1.0, 0.0, type_=Float),
        literal_column("conversation_search").op("MATCH")(query.concat(")")),
        lambda words, operator: f" {operator.upper()} ".join(f'"{word}"' for word in words),
    )


def _postgresql(*, restricted: bool) -> _Search:
    search = table(
        "conversation_search",
        column("message_id", BigInteger),
        column("words", TSVECTOR),
        column("sees", TSVECTOR),
    )
    query = func.to_tsquery("simple", bindparam("words", type_=Text))
    matches: ColumnElement[bool] = search.c.words.op("@@")(query)
    if restricted:
        seen = func.to_tsquery("simple", bindparam("sees", type_=Text))
        matches = and_(matches, search.c.sees.op("@@")(seen))
    signs = {"and": " & ", "or": " | "}
    return _Search(
        search.c.message_id,
        func.ts_rank(search.c.words, query),
        matches,
        lambda words, operator: signs[operator].join(f"'{word}'" for word in words),
    )
