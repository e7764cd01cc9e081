"""The archive of conversations: kept in the database, found by words and by meaning."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.server.conversations.archive.embedding import Embedder, EmbeddingError
from bxmesh.server.conversations.archive.embedding.guarded import GuardedEmbedder
from bxmesh.server.conversations.archive.embedding.watched import WatchedEmbedder
from bxmesh.server.conversations.archive.indexing import Indexer
from bxmesh.server.conversations.archive.search import Found, Meaning, Search
from bxmesh.server.conversations.archive.statistics import statistics
from bxmesh.server.conversations.archive.store import ConversationStore
from bxmesh.server.conversations.archive.vectors import Vectors, open_vectors
from bxmesh.server.database import Database
from bxmesh.server.keeper import Keeper
from bxmesh.server.security.data_loss import ALL_PASS, DataGuard
from bxmesh.server.security.identities import Identity

__all__ = ["Archive", "MeaningOptions", "open_archive"]

_log = logging.getLogger(__name__)

Also = Callable[[Sequence[str]], Awaitable[None]]
"""Is told the names of conversations that are about to go."""


@dataclass(frozen=True, slots=True)
class MeaningOptions:
    """How meaning is found. Keys come from the environment, never from a command line."""

    folder: Path
    """Where vectors are kept when there is no server for them; one process uses it at a time."""
    embedding_url: str = ""
    """An OpenAI-compatible server, up to and with /v1; empty means the packaged model."""
    embedding_model: str = ""
    """Its model."""
    embedding_dimension: int = 0
    """How many numbers the model's vectors have."""
    embedding_key: str = ""
    """The key of that server; empty for none."""
    qdrant_url: str = ""
    """A Qdrant server; empty means the folder."""
    qdrant_key: str = ""
    """The key of that server; empty for none."""


class Archive:
    """All conversations. Where methods take an identity, None stands for the server itself, which sees
    everything. They raise MeshError UNAVAILABLE without the database."""

    def __init__(
        self, database: Database, search: Search, indexer: Indexer | None, also: Also | None
    ) -> None:
        self._database = database
        self._store = ConversationStore(database)
        self._search = search
        self._indexer = indexer
        self._also = also

    async def save(self, conversation: pb.Conversation, team: str = "") -> bool:
        """Stores a conversation with its turns; the same again changes nothing. Returns False, and does
        nothing, when a newer revision is there. The first save says for good whose it is and which
        team sees it, as `security.ownership.shared_team` has it."""
        saved = await self._store.save(conversation, team)
        self._wake()
        return saved

    async def get(self, conversation_id: str, identity: Identity | None) -> pb.Conversation:
        """Returns a conversation with its turns; raises MeshError NOT_FOUND, also for one that the
        identity does not see."""
        return await self._store.get(conversation_id, identity)

    @property
    def meaning(self) -> WatchedEmbedder | None:
        """What tells texts that mean the same; None without a model."""
        return self._search.meaning.embedder if self._search.meaning else None

    @property
    def vectors(self) -> Vectors | None:
        """What is found by meaning; None without a model."""
        return self._search.meaning.vectors if self._search.meaning else None

    async def count_open(self, owner: str) -> int:
        """Returns how many conversations of an owner have not ended."""
        return await self._store.count_open(owner)

    async def open_names(self, older_than: str, count: int) -> list[str]:
        """Returns conversations that have not ended, the oldest first, of those before a name."""
        return await self._store.open_names(older_than, count)

    async def list(
        self, request: archive_pb.ListConversationsRequest, identity: Identity | None
    ) -> tuple[list[pb.Conversation], str]:
        """Returns a page of conversations without turns, the newest first, and the token of the next.
        Raises MeshError INVALID_ARGUMENT (PAGE_TOKEN_INVALID)."""
        return await self._store.list(request, identity)

    async def search(
        self, request: archive_pb.SearchConversationsRequest, identity: Identity | None
    ) -> Found:
        """Returns a page of what was said, the best first. Raises like `Search.find`."""
        return await self._search.find(request, identity)

    def export(
        self, request: archive_pb.ExportConversationsRequest, identity: Identity | None
    ) -> AsyncIterator[archive_pb.ExportConversationsResponse]:
        """Yields whole conversations, the oldest first, each with the token that goes on after it.
        Raises MeshError INVALID_ARGUMENT (PAGE_TOKEN_INVALID)."""
        return self._store.export(request, identity)

    async def delete(self, conversation_id: str, identity: Identity | None) -> None:
        """Deletes a conversation that has ended, with all that was said; its vectors follow. Raises
        MeshError NOT_FOUND, PERMISSION_DENIED and FAILED_PRECONDITION."""
        await self._store.delete(conversation_id, identity)
        self._wake()

    async def purge(
        self, wanted: archive_pb.ConversationFilter, *, validate_only: bool = False
    ) -> archive_pb.PurgeConversationsResponse:
        """Deletes what a filter picks of what has ended, or only counts it. Raises MeshError
        INVALID_ARGUMENT for a filter without end_time."""
        answer = await self._store.purge(wanted, validate_only=validate_only, also=self._also)
        self._wake()
        return answer

    async def forget_expired(self) -> int:
        """Deletes what has expired; returns how many conversations that were."""
        count = await self._store.forget_expired(self._also)
        self._wake()
        return count

    async def statistics(
        self, identity: Identity | None, period: float = 0.0
    ) -> archive_pb.GetConversationStatsResponse:
        """Returns the figures of what an identity sees over a period in seconds, 0 for a day, without
        open circuits."""
        return await statistics(self._database, identity, period)

    def _wake(self) -> None:
        if self._indexer is not None:
            self._indexer.wake()


class _Keeper(Keeper):
    what = "expired conversations"

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def look(self) -> None:
        await self._archive.forget_expired()


@contextlib.asynccontextmanager
async def open_archive(
    database: Database,
    options: MeaningOptions | None,
    also: Also | None = None,
    data: DataGuard = ALL_PASS,
) -> AsyncIterator[Archive]:
    """An archive with what it does in the background. Without options, or without the packages of a
    model, it finds words only. `also` is told what is about to be purged or forgotten, for what else
    is kept under these names; `data` says what an embedding server may be sent. Raises ValueError for
    an embedding server without model and dimension.
    """
    async with contextlib.AsyncExitStack() as stack:
        meaning = await _open_meaning(options, data, stack) if options is not None else None
        indexer = None
        if meaning is not None:
            indexer = Indexer(database, meaning.embedder, meaning.vectors)
            await stack.enter_async_context(indexer)
        archive = Archive(database, Search(database, meaning), indexer, also)
        await stack.enter_async_context(_Keeper(archive))
        yield archive


async def _open_meaning(
    options: MeaningOptions, data: DataGuard, stack: contextlib.AsyncExitStack
) -> Meaning | None:
    try:
        if importlib.util.find_spec("qdrant_client") is None:
            raise EmbeddingError("qdrant-client is not installed: pip install 'bxmesh[qdrant]'")
        embedder = WatchedEmbedder(_embedder(options, data))
    except EmbeddingError as error:
        _log.info("conversations are found by words only: %s", error)
        return None
    stack.push_async_callback(embedder.close)
    vectors = await stack.enter_async_context(
        open_vectors(
            embedder.name,
            embedder.dimension,
            folder=options.folder,
            url=options.qdrant_url,
            api_key=options.qdrant_key,
        )
    )
    return Meaning(embedder, vectors)


def _embedder(options: MeaningOptions, data: DataGuard) -> Embedder:
    if not options.embedding_url:
        from bxmesh.server.conversations.archive.embedding.packaged import PackagedEmbedder

        return PackagedEmbedder()
    if not options.embedding_model or options.embedding_dimension <= 0:
        raise ValueError("An embedding server needs a model and the dimension of its vectors.")
    from bxmesh.server.conversations.archive.embedding.http import HttpEmbedder

    embedder = HttpEmbedder(
        options.embedding_url,
        options.embedding_model,
        options.embedding_dimension,
        options.embedding_key,
    )
    return GuardedEmbedder(embedder, data)
