"""Searching what was said: by words, by meaning, or by both with their ranks fused."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive.conditions import picked, visible
from bxmesh.server.conversations.archive.embedding import EmbeddingError
from bxmesh.server.conversations.archive.embedding.watched import WatchedEmbedder
from bxmesh.server.conversations.archive.indexing import start_of
from bxmesh.server.conversations.archive.pieces import Hit, VectorsAwayError
from bxmesh.server.conversations.archive.seeing import seen_under
from bxmesh.server.conversations.archive.text_search import find_words
from bxmesh.server.conversations.archive.words import snippet, terms_of
from bxmesh.server.database import Database
from bxmesh.server.database.tables import CONVERSATION_MESSAGES, CONVERSATIONS
from bxmesh.server.errors import failed_precondition, invalid_argument, unavailable
from bxmesh.server.pages import token_invalid, token_of, token_place
from bxmesh.server.security.identities import Identity

if TYPE_CHECKING:
    from bxmesh.server.conversations.archive.vectors import Vectors

__all__ = ["Found", "Meaning", "Search"]

_log = logging.getLogger(__name__)

_C, _M = CONVERSATIONS.c, CONVERSATION_MESSAGES.c
_DEFAULT_PAGE = 100
_MOST_PAGE_BYTES = 2 << 20
_ROWS_AT_ONCE = 20
_MOST_BY_WORDS = 1000
# Something is always nearest, and beyond these hardly near.
_MOST_BY_MEANING = 200
# How many are looked at for these, where a filter leaves few: first, then.
_LOOKED_AT = (400, 10_000)
# Of Cormack, Clarke and Büttcher, Reciprocal rank fusion outperforms Condorcet (2009).
_FUSION = 60.0
_MEANING_SECONDS = 8.0
# Who searches must not wait each time for what is away.
_AWAY_SECONDS = 15.0
_WORDS, _NEAR, _BOTH = "w", "m", "b"


class Meaning(NamedTuple):
    """What finds by meaning."""

    embedder: WatchedEmbedder
    vectors: Vectors


class Found(NamedTuple):
    """A page of places."""

    results: list[archive_pb.SearchResult]
    next_page_token: str
    degraded: bool
    """Whether only words were looked for because the vectors are away."""


class Search:
    """Finds what was said."""

    def __init__(self, database: Database, meaning: Meaning | None) -> None:
        """Takes None where there is no embedding model."""
        self._database = database
        self.meaning = meaning
        """How meaning is found; None without a model."""
        self._away_until = 0.0

    async def find(
        self, request: archive_pb.SearchConversationsRequest, identity: Identity | None
    ) -> Found:
        """Returns a page of places, the best first: of words at most the best 1000, of meaning the
        nearest 200. What is said meanwhile may move places from one page to the next.

        Raises MeshError INVALID_ARGUMENT for a query without words, one that may not or cannot be sent to the
        model of meaning, or another token, FAILED_PRECONDITION
        (NO_EMBEDDING_MODEL) and UNAVAILABLE (VECTORS_UNAVAILABLE) for meaning alone, and UNAVAILABLE
        without the database.
        """
        terms = terms_of(request.query)
        how, offset = self._start(request)
        chunks: Mapping[int, int] = {}
        degraded = False
        ranks: list[Sequence[int]] = []
        if how != _NEAR:
            words = find_words(self._database, terms, identity, request.filter, _MOST_BY_WORDS)
            ranks.append(await words)
        if how != _WORDS and self.meaning is not None:
            try:
                chunks = await self._nearest(self.meaning, request, identity)
            except (EmbeddingError, VectorsAwayError, TimeoutError) as error:
                why = str(error) or "it takes too long"
                _log.warning("search by meaning does not work: %s", why)
                # A page must go on with what its first was made of.
                if how == _NEAR or offset:
                    if isinstance(error, EmbeddingError) and error.refused:
                        raise invalid_argument(
                            "query", f"cannot be looked for by meaning: {why}"
                        ) from error
                    raise unavailable(
                        "What finds by meaning is away. Search by words alone, or again later.",
                        retry_after=_AWAY_SECONDS,
                        reason="VECTORS_UNAVAILABLE",
                    ) from error
                how, degraded = _WORDS, True
            else:
                ranks.append(list(chunks))
        results, after = await self._page(request, identity, terms, _fused(ranks), chunks, offset)
        token = token_of(request, f"{how}{after}") if after else ""
        return Found(results, token, degraded)

    def _start(self, request: archive_pb.SearchConversationsRequest) -> tuple[str, int]:
        """How to look, and how many places to pass over."""
        if place := token_place(request):
            if not re.fullmatch(rf"[{_WORDS}{_NEAR}{_BOTH}][0-9]{{1,6}}", place):
                raise token_invalid()
            how, offset = place[0], int(place[1:])
        else:
            how = {
                archive_pb.SEARCH_MODE_TEXT: _WORDS,
                archive_pb.SEARCH_MODE_MEANING: _NEAR,
            }.get(request.mode, _BOTH)
            offset = 0
        if self.meaning is None and how == _BOTH:
            how = _WORDS
        if self.meaning is None and how == _NEAR:
            raise failed_precondition(
                "This server has no embedding model. Search by words.",
                reason="NO_EMBEDDING_MODEL",
                subject="mode",
            )
        return how, offset

    async def _nearest(
        self,
        meaning: Meaning,
        request: archive_pb.SearchConversationsRequest,
        identity: Identity | None,
    ) -> dict[int, int]:
        """Messages, the nearest first, each with the chunk that is."""
        if time.monotonic() < self._away_until:
            raise VectorsAwayError("was away a moment ago")
        try:
            async with asyncio.timeout(_MEANING_SECONDS):
                return await self._near(meaning, request, identity)
        except (EmbeddingError, VectorsAwayError, TimeoutError) as error:
            # A query that the model does not take says nothing of others.
            if not (isinstance(error, EmbeddingError) and error.refused):
                self._away_until = time.monotonic() + _AWAY_SECONDS
            raise

    async def _near(
        self,
        meaning: Meaning,
        request: archive_pb.SearchConversationsRequest,
        identity: Identity | None,
    ) -> dict[int, int]:
        (vector,) = await meaning.embedder.embed([request.query])
        seen: dict[int, int] = {}
        for most in _LOOKED_AT:
            hits = await meaning.vectors.nearest(vector, most, seen_under(identity))
            allowed = await self._allowed(hits, request, identity)
            seen = {}
            for hit in hits:
                if (hit.message_id, hit.conversation_id) in allowed:
                    seen.setdefault(hit.message_id, hit.chunk)
            if len(seen) >= _MOST_BY_MEANING or len(hits) < most:
                break
        return dict(list(seen.items())[:_MOST_BY_MEANING])

    async def _allowed(
        self,
        hits: Sequence[Hit],
        request: archive_pb.SearchConversationsRequest,
        identity: Identity | None,
    ) -> set[tuple[int, str]]:
        """What is there still, is seen and fits the filter."""
        query = (
            select(_M.message_id, _M.conversation_id)
            .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
            .where(
                _M.message_id.in_({hit.message_id for hit in hits}),
                visible(identity),
                picked(request.filter),
            )
        )
        return await self._database.read(
            lambda connection: {(name, of) for name, of in connection.execute(query)}
        )

    async def _page(
        self,
        request: archive_pb.SearchConversationsRequest,
        identity: Identity | None,
        terms: Sequence[str],
        scores: Mapping[int, float],
        chunks: Mapping[int, int],
        offset: int,
    ) -> tuple[list[archive_pb.SearchResult], int]:
        """The results, and how many places the next page passes over, 0 on the last."""
        names = list(scores)
        size = request.page_size or _DEFAULT_PAGE
        page: list[archive_pb.SearchResult] = []
        room = _MOST_PAGE_BYTES
        for first in range(offset, len(names), _ROWS_AT_ONCE):
            some = names[first : first + _ROWS_AT_ONCE]
            rows = await self._rows(some, request, identity)
            for place, name in enumerate(some, first):
                if name not in rows:
                    continue
                result = _result(rows[name], terms, start_of(chunks.get(name, 0)), scores[name])
                room -= result.ByteSize()
                if page and (len(page) == size or room < 0):
                    return page, place
                page.append(result)
        return page, 0

    async def _rows(
        self,
        names: Sequence[int],
        request: archive_pb.SearchConversationsRequest,
        identity: Identity | None,
    ) -> dict[int, Any]:
        query = (
            select(_M.message_id, _M.said, _C.conversation)
            .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
            .where(_M.message_id.in_(names), visible(identity), picked(request.filter))
        )
        return await self._database.read(
            lambda connection: {row.message_id: row for row in connection.execute(query)}
        )


def _fused(ranks: Sequence[Sequence[int]]) -> dict[int, float]:
    """Scores of messages, the best first."""
    scores: dict[int, float] = {}
    for names in ranks:
        for rank, name in enumerate(names, 1):
            scores[name] = scores.get(name, 0.0) + 1.0 / (_FUSION + rank)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], -item[0])))


def _result(row: Any, terms: Sequence[str], start: int, score: float) -> archive_pb.SearchResult:
    conversation = pb.Conversation.FromString(row.conversation)
    turn = pb.Turn.FromString(row.said) if row.said else pb.Turn(text=conversation.spec.message)
    return archive_pb.SearchResult(
        conversation=conversation,
        turn=turn.turn,
        participant_id=turn.participant_id,
        snippet=snippet(turn.text, terms, start),
        score=score,
    )
