"""Vectors of what was said, in Qdrant: a folder of this process, or a server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeVar
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from numpy.typing import NDArray

from bxmesh.server.conversations.archive.pieces import (
    MOST_CHUNKS,
    Hit,
    Piece,
    VectorsAwayError,
)
from bxmesh.server.conversations.archive.uses import Uses

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter

__all__ = ["Vectors", "open_vectors"]

_SECONDS = 5
_THREADS = 4
# A full disk takes names, but no bytes.
_PROBE_BYTES = 4096
_SEES = "sees"
_CONVERSATION = "conversation"

T = TypeVar("T")


class Vectors:
    """One collection, of the vectors of one model. Methods raise VectorsAwayError."""

    def __init__(
        self,
        connect: Callable[[], QdrantClient],
        name: str,
        dimension: int,
        folder: Path | None,
    ) -> None:
        """Takes the folder where it is one."""
        self.name = f"conversations-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{dimension}"
        """The collection, which no other model shares."""
        self._dimension = dimension
        self._connect = connect
        self._client: QdrantClient | None = None
        self._folder = folder
        self._local = folder is not None
        self.uses = Uses()
        """How it goes."""
        # Local mode is not made for several threads.
        self._threads = ThreadPoolExecutor(1 if self._local else _THREADS, "vectors")

    async def connect(self) -> None:
        """Connects now, instead of when it is first asked, which takes a few seconds."""
        await self._do(lambda client: None)

    async def put(self, pieces: Sequence[Piece], vectors: NDArray[np.float32]) -> None:
        """Writes the vectors of all pieces of some messages; what these had beyond that goes."""

        def put(client: QdrantClient) -> None:
            from qdrant_client.models import PointStruct

            points = [
                PointStruct(
                    id=_point_id(piece.conversation_id, piece.place, piece.chunk),
                    vector=vector.tolist(),
                    payload={
                        _CONVERSATION: piece.conversation_id,
                        "message": piece.message_id,
                        "chunk": piece.chunk,
                        _SEES: list(piece.sees),
                    },
                )
                for piece, vector in zip(pieces, vectors, strict=True)
            ]
            client.upsert(self.name, points=points, wait=True)
            self._drop(client, _all_of(pieces) - {str(point.id) for point in points})

        await self._do(put)

    async def drop(self, pieces: Iterable[Piece]) -> None:
        """Removes all vectors of the messages that pieces are of."""
        gone = _all_of(pieces)
        await self._do(lambda client: self._drop(client, gone))

    async def drop_conversations(self, names: Sequence[str]) -> None:
        """Removes all vectors of conversations."""

        def drop(client: QdrantClient) -> None:
            from qdrant_client.models import FilterSelector

            selector = FilterSelector(filter=_any_of(_CONVERSATION, names))
            client.delete(self.name, points_selector=selector, wait=True)

        await self._do(drop)

    async def nearest(
        self, vector: NDArray[np.float32], most: int, sees: Sequence[str] | None
    ) -> list[Hit]:
        """Returns the nearest pieces, the nearest first, of those that are seen under one of these
        names; None means all. A folder heeds no names, as that would take it a second: whoever asks
        looks at what comes anyway."""

        def find(client: QdrantClient) -> list[Hit]:
            wanted = None if sees is None or self._local else _any_of(_SEES, sees)
            found = client.query_points(
                self.name, query=vector.tolist(), query_filter=wanted, limit=most
            )
            hits = []
            for point in found.points:
                payload = point.payload or {}
                hits.append(Hit(payload["message"], payload[_CONVERSATION], payload["chunk"]))
            return hits

        return await self._do(find)

    async def count(self) -> int:
        """Returns how many vectors there are."""
        return await self._do(lambda client: client.count(self.name).count)

    @property
    def connected(self) -> bool:
        """Whether it has connected."""
        return self._client is not None

    async def look(self) -> int:
        """Returns how many vectors there are, where more can be written. It is no use of them."""

        def look(client: QdrantClient) -> int:
            if self._folder is not None:
                with TemporaryFile(dir=self._folder) as file:
                    file.write(bytes(_PROBE_BYTES))
            return client.count(self.name).count

        return await self._call(look)

    def _drop(self, client: QdrantClient, ids: Iterable[str]) -> None:
        from qdrant_client.models import PointIdsList

        if gone := set(ids):
            client.delete(self.name, points_selector=PointIdsList(points=[*gone]), wait=True)

    async def _do(self, work: Callable[[QdrantClient], T]) -> T:
        with self.uses.one():
            return await self._call(work)

    async def _call(self, work: Callable[[QdrantClient], T]) -> T:
        def do() -> T:
            try:
                return work(self._ready())
            # Whatever goes wrong in a library over sockets and files, the vectors are away.
            except Exception as error:
                raise VectorsAwayError(_first_line(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, do)

    def _ready(self) -> QdrantClient:
        if self._client is None:
            client = self._connect()
            try:
                self._prepare(client)
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client

    def _prepare(self, client: QdrantClient) -> None:
        from qdrant_client.models import Distance, PayloadSchemaType, VectorParams

        if client.collection_exists(self.name):
            return
        size = VectorParams(size=self._dimension, distance=Distance.COSINE)
        try:
            client.create_collection(self.name, vectors_config=size)
        except Exception:
            # Another server was faster.
            if not client.collection_exists(self.name):
                raise
        for field in () if self._local else (_CONVERSATION, _SEES):
            client.create_payload_index(self.name, field, PayloadSchemaType.KEYWORD)

    async def close(self) -> None:
        """Waits for what is under way and lets go of the folder."""

        def close() -> None:
            if self._client is not None:
                self._client.close()

        await asyncio.get_running_loop().run_in_executor(self._threads, close)
        await asyncio.to_thread(self._threads.shutdown)


@asynccontextmanager
async def open_vectors(
    name: str, dimension: int, *, folder: Path, url: str = "", api_key: str = ""
) -> AsyncIterator[Vectors]:
    """The vectors of a model, on a server where there is a URL, or else in a folder, which one process
    may use at a time. Connects when it is first asked, and again when that failed."""

    def connect() -> QdrantClient:
        # To import it takes seconds, which no server that is not asked should wait for.
        from qdrant_client import QdrantClient

        if url:
            return QdrantClient(
                url=url, api_key=api_key or None, timeout=_SECONDS, check_compatibility=False
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return QdrantClient(path=str(folder))

    vectors = Vectors(connect, name, dimension, None if url else folder)
    try:
        yield vectors
    finally:
        await vectors.close()


def _any_of(field: str, names: Sequence[str]) -> Filter:
    from qdrant_client.models import FieldCondition, Filter, MatchAny

    return Filter(must=[FieldCondition(key=field, match=MatchAny(any=list(names)))])


def _all_of(pieces: Iterable[Piece]) -> set[str]:
    return {
        _point_id(piece.conversation_id, piece.place, chunk)
        for piece in pieces
        for chunk in range(MOST_CHUNKS)
    }


def _point_id(conversation_id: str, place: int, chunk: int) -> str:
    return str(uuid5(NAMESPACE_OID, f"{conversation_id}\0{place}\0{chunk}"))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
