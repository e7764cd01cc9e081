"""Vectors follow what is saved and deleted: rows say what is still to do, so an outage loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, case, delete, or_, select, update

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive.embedding import Embedder, EmbeddingError
from bxmesh.server.conversations.archive.pieces import MOST_CHUNKS, Piece, VectorsAwayError
from bxmesh.server.database import Database
from bxmesh.server.database.tables import (
    CONVERSATION_MESSAGES,
    CONVERSATION_REMOVALS,
    CONVERSATIONS,
)
from bxmesh.server.errors import MeshError
from bxmesh.server.streams.ending import Background

if TYPE_CHECKING:
    from bxmesh.server.conversations.archive.vectors import Vectors

__all__ = ["Indexer", "start_of"]

_log = logging.getLogger(__name__)

_C, _M, _R = CONVERSATIONS.c, CONVERSATION_MESSAGES.c, CONVERSATION_REMOVALS.c
# About what a small model reads at a time.
_CHUNK = 800
_MESSAGES_AT_ONCE = 32
_REMOVALS_AT_ONCE = 100
# Other servers save too.
_LOOK_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0

_DONE = update(CONVERSATION_MESSAGES).where(
    _M.message_id == bindparam("which"), _M.revision == bindparam("read")
)
_THERE = select(_M.message_id).where(_M.message_id == bindparam("which"))


class Indexer(Background):
    """An async context manager, within which vectors are written and removed."""

    def __init__(self, database: Database, embedder: Embedder, vectors: Vectors) -> None:
        self._database = database
        self._embedder = embedder
        self._vectors = vectors
        self._some = asyncio.Event()
        self._done = _DONE.values(vectors=vectors.name)
        self._pending = (
            select(
                _M.message_id,
                _M.conversation_id,
                _M.place,
                _M.revision,
                _M.said,
                _M.sees,
                case((_M.place == 0, _C.conversation)).label("question"),
            )
            .join(CONVERSATIONS, _C.conversation_id == _M.conversation_id)
            # An index finds both halves.
            .where(or_(_M.vectors < vectors.name, _M.vectors > vectors.name))
            .limit(_MESSAGES_AT_ONCE)
        )

    def wake(self) -> None:
        """Tells it that there is something to do."""
        self._some.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._some.clear()
            try:
                if await self.step():
                    failures = 0
                    continue
            except (EmbeddingError, VectorsAwayError, MeshError) as error:
                if not failures:
                    _log.warning("conversations wait for their vectors: %s", str(error))
                failures = min(failures + 1, 10)
                await asyncio.sleep(min(_LONGEST_WAIT_SECONDS, 2.0**failures))
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._some.wait(), _LOOK_SECONDS)

    async def step(self) -> int:
        """Does some of what there is to do; returns how much, 0 when all is done. Raises EmbeddingError,
        VectorsAwayError and MeshError UNAVAILABLE."""
        return await self._remove() + await self._add()

    async def _remove(self) -> int:
        query = select(_R.conversation_id).limit(_REMOVALS_AT_ONCE)
        names = await self._database.read(lambda connection: connection.scalars(query).all())
        if names:
            await self._vectors.drop_conversations(names)
            done = delete(CONVERSATION_REMOVALS).where(_R.conversation_id.in_(names))
            await self._database.write(lambda connection: connection.execute(done))
        return len(names)

    async def _add(self) -> int:
        rows = await self._database.read(lambda connection: connection.execute(self._pending).all())
        texts = {row.message_id: _chunks(row) for row in rows}
        pieces: list[Piece] = []
        vectors: list[NDArray[np.float32]] = []
        for row, embedded in await self._embedded([row for row in rows if texts[row.message_id]]):
            pieces += _pieces(row, len(embedded))
            vectors.append(embedded)
        if pieces:
            await self._vectors.put(pieces, np.concatenate(vectors))

        def done(connection: Connection) -> set[int]:
            gone = set()
            for row in rows:
                which = {"which": row.message_id, "read": row.revision}
                # What has changed since is pending still.
                if not connection.execute(self._done, which).rowcount and (
                    connection.scalar(_THERE, {"which": row.message_id}) is None
                ):
                    gone.add(row.message_id)
            return gone

        if rows:
            gone = await self._database.write(done)
            # Nobody else knows that these had vectors.
            await self._vectors.drop(piece for piece in pieces if piece.message_id in gone)
        return len(rows)

    async def _embedded(self, rows: Sequence[Any]) -> list[tuple[Any, NDArray[np.float32]]]:
        """Vectors of each message; those that the model refuses are left out."""
        chunks = [_chunks(row) for row in rows]
        try:
            vectors = await self._embedder.embed([text for texts in chunks for text in texts])
        except EmbeddingError as error:
            if not error.refused:
                raise
            if len(rows) > 1:
                return [one for row in rows for one in await self._embedded([row])]
            row = rows[0]
            _log.warning(
                "message %d of conversation %s is not found by meaning: %s",
                row.place,
                row.conversation_id,
                error,
            )
            return []
        found = []
        for row, texts in zip(rows, chunks, strict=True):
            found.append((row, vectors[: len(texts)]))
            vectors = vectors[len(texts) :]
        return found


def start_of(chunk: int) -> int:
    """Returns where in its text a chunk begins, in characters."""
    return chunk * _CHUNK


def _pieces(row: Any, count: int) -> list[Piece]:
    sees = tuple(row.sees.split())
    return [
        Piece(row.conversation_id, row.message_id, row.place, chunk, sees) for chunk in range(count)
    ]


def _chunks(row: Any) -> list[str]:
    if row.question is not None:
        text = pb.Conversation.FromString(row.question).spec.message
    else:
        text = pb.Turn.FromString(row.said).text
    text = text[: _CHUNK * MOST_CHUNKS]
    # One that is blank moves nothing.
    return (
        [text[first : first + _CHUNK] for first in range(0, len(text), _CHUNK)]
        if text.strip()
        else []
    )
