"""Searching by meaning: vectors follow what is saved, whatever is away meanwhile."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import func, select

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_TEAM
from bxmesh.server.conversations.archive import Archive, MeaningOptions, open_archive, search
from bxmesh.server.conversations.archive.embedding.http import HttpEmbedder
from bxmesh.server.conversations.archive.indexing import Indexer
from bxmesh.server.conversations.archive.pieces import VectorsAwayError
from bxmesh.server.conversations.archive.search import Meaning, Search
from bxmesh.server.conversations.archive.vectors import Vectors, open_vectors
from bxmesh.server.database import Database, open_database
from bxmesh.server.database.tables import CONVERSATION_MESSAGES, CONVERSATION_REMOVALS
from bxmesh.server.errors import MeshError
from bxmesh.server.security.identities import Identity
from tests.conversations.archived import ALICE, BOB, CAROL, at, conversation, turn
from tests.conversations.embedding_server import DIMENSION, EmbeddingServer, embedding_server

Request = archive_pb.SearchConversationsRequest
MEANING = archive_pb.SEARCH_MODE_MEANING


class World:
    """An archive whose vectors are written when a test says so."""

    def __init__(
        self, database: Database, server: EmbeddingServer, embedder: HttpEmbedder, vectors: Vectors
    ) -> None:
        self.database = database
        self.server = server
        self.vectors = vectors
        self.indexer = Indexer(database, embedder, vectors)
        self.archive = Archive(database, Search(database, Meaning(embedder, vectors)), None, None)

    async def index(self) -> None:
        while await self.indexer.step():
            pass

    async def near(
        self, query: str, identity: Identity | None = None, **fields: object
    ) -> list[str]:
        request = Request(query=query, mode=MEANING, **fields)  # type: ignore[arg-type]
        found = await self.archive.search(request, identity)
        return [result.snippet for result in found.results]

    async def count(self, what: object) -> int:
        async with self.database.reading() as connection:
            return await connection.scalar(select(func.count()).select_from(what)) or 0  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as running:
        yield running


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


@asynccontextmanager
async def a_world(
    database: Database, server: EmbeddingServer, folder: Path, model: str = "small", url: str = ""
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        embedder = HttpEmbedder(server.url, model, DIMENSION)
        stack.push_async_callback(embedder.close)
        vectors = await stack.enter_async_context(
            open_vectors(model, DIMENSION, folder=folder, url=url)
        )
        with suppress(VectorsAwayError):
            await vectors.connect()
        yield World(database, server, embedder, vectors)


@pytest.fixture
async def world(
    database: Database, server: EmbeddingServer, tmp_path: Path
) -> AsyncIterator[World]:
    async with a_world(database, server, tmp_path / "vectors") as running:
        yield running


async def test_what_means_the_same_is_found(world: World) -> None:
    await world.archive.save(
        conversation("Where is the cat?", [turn("The puppy knows."), turn("In the solvent.", 2)])
    )
    assert await world.near("kitten") == []
    await world.index()
    assert (await world.near("kitten"))[0] == "Where is the cat?"
    found = await world.archive.search(Request(query="dog", mode=MEANING), ALICE)
    assert found.results[0].turn == 1
    assert found.results[0].participant_id == "ann"
    assert not found.degraded
    # What is indexed is not indexed again.
    asked = len(world.server.texts)
    await world.index()
    assert len(world.server.texts) == asked


async def test_both_together_rank_what_both_find_first(world: World) -> None:
    for text in ("kitten", "a cat and the word needle", "needle in a haystack", "a puppy"):
        await world.archive.save(conversation(text))
    await world.index()
    found = await world.archive.search(Request(query="needle cat"), ALICE)
    texts = [result.snippet for result in found.results]
    assert texts[:2] == ["a cat and the word needle", "kitten"]
    assert len(texts) == 4
    by_words = Request(query="needle", mode=archive_pb.SEARCH_MODE_TEXT)
    assert len((await world.archive.search(by_words, ALICE)).results) == 2


async def test_pages_of_both_together(world: World) -> None:
    for index in range(30):
        await world.archive.save(conversation(f"cat {index}", [turn("kitten")]))
    await world.index()
    request = Request(query="cat", page_size=7)
    seen: list[tuple[str, int]] = []
    while True:
        found = await world.archive.search(request, ALICE)
        seen += [(r.conversation.conversation_id, r.turn) for r in found.results]
        if not found.next_page_token:
            break
        request.page_token = found.next_page_token
    assert len(seen) == len(set(seen)) == 60


async def test_only_what_one_sees_and_wants(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # The nearest are all others'.
    monkeypatch.setattr(search, "_LOOKED_AT", (5, 100))
    for index in range(20):
        await world.archive.save(conversation(f"cat {index}", owner="dave"))
    await world.archive.save(conversation("cat of alice and dog", begin=100, labels={"p": "1"}))
    await world.archive.save(
        conversation("cat of the team and dog", visibility=VISIBILITY_TEAM, begin=200), "crystal"
    )
    await world.archive.save(
        conversation("cat of all and dog", visibility=VISIBILITY_ALL, begin=300)
    )
    await world.index()
    alices, teams, alls = "cat of alice and dog", "cat of the team and dog", "cat of all and dog"
    assert set(await world.near("kitten", ALICE)) == {alices, teams, alls}
    assert set(await world.near("kitten", BOB)) == {teams, alls}
    assert set(await world.near("kitten", CAROL)) == {alls}
    assert len(await world.near("kitten")) == 23
    wanted = archive_pb.ConversationFilter(labels={"p": "1"})
    assert await world.near("kitten", ALICE, filter=wanted) == [alices]
    wanted = archive_pb.ConversationFilter(start_time=at(150), end_time=at(250), owner="alice")
    assert await world.near("kitten", filter=wanted) == [teams]


async def test_what_changes_or_goes_is_found_no_more(world: World) -> None:
    one = conversation("cat " * 1000, [turn("dog"), turn("water")])
    other = conversation("ligand")
    await world.archive.save(one)
    await world.archive.save(other)
    await world.index()
    assert await world.vectors.count() == 5 + 3
    one.spec.message = "short"
    one.turns[0].text = "density"
    one.revision = 2
    await world.archive.save(one)
    await world.index()
    assert await world.vectors.count() == 1 + 3
    assert (await world.near("map"))[0] == "density"
    counted = await world.archive.purge(
        archive_pb.ConversationFilter(end_time=at(1e9)), validate_only=True
    )
    assert dict(counted.deleted_by_store) == {"database": 6, "vectors": 4}
    await world.archive.delete(one.conversation_id, ALICE)
    assert await world.count(CONVERSATION_REMOVALS) == 1
    assert await world.near("map") == ["ligand"]
    await world.index()
    assert await world.vectors.count() == 1
    assert await world.count(CONVERSATION_REMOVALS) == 0


async def test_what_is_deleted_while_it_is_indexed_leaves_no_vectors(world: World) -> None:
    one = conversation("cat")
    await world.archive.save(one)
    world.server.may_answer.clear()
    world.server.was_asked.clear()
    indexing = asyncio.create_task(world.index())
    assert await asyncio.to_thread(world.server.was_asked.wait, 30)
    await world.archive.delete(one.conversation_id, ALICE)
    world.server.may_answer.set()
    await indexing
    assert await world.vectors.count() == 0


async def test_what_changes_while_it_is_indexed_is_indexed_again(world: World) -> None:
    one = conversation("cat")
    await world.archive.save(one)
    world.server.may_answer.clear()
    world.server.was_asked.clear()
    indexing = asyncio.create_task(world.index())
    assert await asyncio.to_thread(world.server.was_asked.wait, 30)
    one.spec.message, one.revision = "dog", 2
    await world.archive.save(one)
    world.server.may_answer.set()
    await indexing
    assert world.server.texts == ["cat", "dog"]
    assert await world.vectors.count() == 1


async def test_one_message_that_the_model_refuses_does_not_stop_the_others(world: World) -> None:
    world.server.refused = "poison"
    for index in range(40):
        await world.archive.save(conversation("poison" if index == 7 else f"cat {index}"))
    await world.index()
    assert await world.vectors.count() == 39


async def test_another_model_begins_anew(
    world: World, database: Database, server: EmbeddingServer, tmp_path: Path
) -> None:
    await world.archive.save(conversation("cat"))
    await world.index()
    async with a_world(database, server, tmp_path / "others", "large") as other:
        assert await other.near("kitten") == []
        await other.index()
        assert await other.near("kitten") == ["cat"]


async def test_an_outage_of_the_model_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_AWAY_SECONDS", 0.0)
    world.server.status = 500
    await world.archive.save(conversation("cat"))
    with pytest.raises(Exception, match="500"):
        await world.index()
    found = await world.archive.search(Request(query="cat"), ALICE)
    assert found.degraded
    assert [result.snippet for result in found.results] == ["cat"]
    with pytest.raises(MeshError) as raised:
        await world.near("cat")
    assert raised.value.reason == "VECTORS_UNAVAILABLE"
    world.server.status = 200
    await world.index()
    assert await world.near("kitten") == ["cat"]
    assert not (await world.archive.search(Request(query="cat"), ALICE)).degraded


async def test_pages_go_on_with_what_they_began_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_AWAY_SECONDS", 0.0)
    for index in range(3):
        await world.archive.save(conversation(f"cat {index}"))
    await world.index()
    both = await world.archive.search(Request(query="cat", page_size=1), ALICE)
    world.server.status = 500
    words = await world.archive.search(Request(query="cat", page_size=1), ALICE)
    with pytest.raises(MeshError) as raised:
        await world.archive.search(
            Request(query="cat", page_size=1, page_token=both.next_page_token), ALICE
        )
    assert raised.value.reason == "VECTORS_UNAVAILABLE"
    world.server.status = 200
    second = await world.archive.search(
        Request(query="cat", page_size=1, page_token=words.next_page_token), ALICE
    )
    assert second.results[0].snippet != words.results[0].snippet


async def test_who_searches_does_not_wait_each_time_for_what_is_away(world: World) -> None:
    world.server.status = 500
    for _ in range(5):
        assert (await world.archive.search(Request(query="cat"), ALICE)).degraded
    assert len(world.server.texts) == 1


# qdrant-client leaves the file of a lock that it did not get to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_folder_that_another_uses_means_words_only(
    world: World, database: Database, server: EmbeddingServer, tmp_path: Path
) -> None:
    await world.archive.save(conversation("cat"))
    await world.index()
    async with a_world(database, server, tmp_path / "vectors") as other:
        found = await other.archive.search(Request(query="cat"), ALICE)
        assert found.degraded
        assert len(found.results) == 1
    gc.collect()


async def test_a_server_of_vectors_that_is_away_means_words_only(
    database: Database, server: EmbeddingServer, tmp_path: Path
) -> None:
    url = "http://127.0.0.1:1"
    async with a_world(database, server, tmp_path / "unused", url=url) as world:
        await world.archive.save(conversation("cat"))
        found = await world.archive.search(Request(query="cat"), ALICE)
        assert found.degraded
        assert len(found.results) == 1
        with pytest.raises(Exception, match="refused"):
            await world.index()
    assert not (tmp_path / "unused").exists()


async def test_it_all_happens_by_itself_and_outlives_the_process(
    database: Database, tmp_path: Path
) -> None:
    """With the packaged model."""
    options = MeaningOptions(tmp_path / "vectors")
    request = Request(query="a small pet", mode=MEANING)

    async def nearest(archive: Archive) -> str:
        while True:
            found = await archive.search(request, ALICE)
            if len(found.results) == 3:
                return found.results[0].snippet
            await asyncio.sleep(0.05)

    async with open_archive(database, options) as archive:
        for text in ("The kitten sleeps.", "Refinement has converged.", "Stocks fell."):
            await archive.save(conversation(text))
        assert await nearest(archive) == "The kitten sleeps."
    async with open_archive(database, options) as archive:
        assert await nearest(archive) == "The kitten sleeps."
    pending = select(CONVERSATION_MESSAGES).where(CONVERSATION_MESSAGES.c.vectors == "")
    async with database.reading() as connection:
        assert (await connection.execute(pending)).all() == []


async def test_an_embedding_server_needs_a_model_and_its_dimension(
    database: Database, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="dimension"):
        async with open_archive(database, MeaningOptions(tmp_path, embedding_url="http://x/v1")):
            pass
