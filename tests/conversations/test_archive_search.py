"""Searching by words, in SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_TEAM
from bxmesh.server.conversations.archive import Archive, open_archive, text_search
from bxmesh.server.database import Database, open_database
from bxmesh.server.errors import MeshError
from bxmesh.server.security.identities import Identity
from tests.conversations.archived import ALICE, BOB, CAROL, OPERATOR, at, conversation, turn

Search = archive_pb.SearchConversationsRequest


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


@pytest.fixture
async def archive(database: Database) -> AsyncIterator[Archive]:
    async with open_archive(database, None) as opened:
        yield opened


async def places(
    archive: Archive, query: str, identity: Identity | None = None, **fields: object
) -> list[tuple[str, int, str]]:
    request = Search(query=query, **fields)  # type: ignore[arg-type]
    found = await archive.search(request, identity)
    return [(r.conversation.spec.message, r.turn, r.participant_id) for r in found.results]


async def test_what_was_asked_and_said_is_found(archive: Archive) -> None:
    await archive.save(
        conversation(
            "Is the density of the ligand clear?",
            [
                turn("No, the occupancy is too low.", 1, "ann"),
                turn("The Ångström scale says otherwise.", 2, "ben"),
            ],
        )
    )
    await archive.save(conversation("What is R-free?", [turn("0.21 for 1abc.pdb")]))
    assert await places(archive, "ligand density") == [
        ("Is the density of the ligand clear?", 0, "")
    ]
    assert [place[1:] for place in await places(archive, "OCCUPANCY")] == [(1, "ann")]
    assert [place[1:] for place in await places(archive, "angstrom")] == [(2, "ben")]
    assert [place[1:] for place in await places(archive, "1abc")] == [(1, "ann")]
    assert [place[1:] for place in await places(archive, "0.21")] == [(1, "ann")]
    assert await places(archive, "nothing") == []
    (result,) = (await archive.search(Search(query="occupancy"), ALICE)).results
    assert result.snippet == "No, the occupancy is too low."
    assert result.conversation.owner == "alice"
    assert not result.conversation.turns
    assert result.score > 0


async def test_all_words_or_else_any_the_best_first(archive: Archive) -> None:
    for said in ("map", "model and map", "model", "a long talk about one map " * 20):
        await archive.save(conversation(said))
    assert [place[0] for place in await places(archive, "map model")] == ["model and map"]
    assert len(await places(archive, "map nonsense")) == 3
    best = await places(archive, "nonsense model map")
    assert best[0][0] == "model and map"


async def test_what_changes_or_goes_is_found_no_more(archive: Archive, database: Database) -> None:
    one = conversation("question", [turn("alpha"), turn("beta", 2)])
    await archive.save(one)
    one.turns[0].text = "gamma"
    del one.turns[1]
    one.revision = 2
    await archive.save(one)
    assert await places(archive, "alpha") == []
    assert await places(archive, "beta") == []
    assert len(await places(archive, "gamma")) == 1
    await archive.delete(one.conversation_id, ALICE)
    assert await places(archive, "gamma question") == []
    if database.dialect == "sqlite":
        async with database.writing() as connection:
            # Says so when index and messages differ.
            await connection.execute(
                text(
                    "INSERT INTO conversation_search(conversation_search) VALUES ('integrity-check')"
                )
            )


async def test_only_what_one_sees_and_wants(archive: Archive) -> None:
    await archive.save(conversation("word one", labels={"p": "1"}, begin=100))
    await archive.save(conversation("word two", visibility=VISIBILITY_TEAM, begin=200), "crystal")
    await archive.save(
        conversation("word three", owner="bob", begin=300, state=pb.CONVERSATION_STATE_RUNNING)
    )
    for identity, count in ((ALICE, 2), (BOB, 2), (CAROL, 0), (OPERATOR, 3), (None, 3)):
        assert len(await places(archive, "word", identity)) == count
    for fields, found in (
        ({"labels": {"p": "1"}}, "word one"),
        ({"states": [pb.CONVERSATION_STATE_RUNNING]}, "word three"),
        ({"start_time": at(150), "end_time": at(250)}, "word two"),
    ):
        wanted = archive_pb.ConversationFilter(**fields)  # type: ignore[arg-type]
        assert [p[0] for p in await places(archive, "word", filter=wanted)] == [found]


async def test_pages(archive: Archive) -> None:
    for index in range(45):
        await archive.save(conversation(f"word {index}", [turn(f"word {index} again")]))
    request = Search(query="word", page_size=25)
    seen: list[tuple[str, int]] = []
    scores: list[float] = []
    while True:
        found = await archive.search(request, ALICE)
        assert len(found.results) <= 25
        seen += [(r.conversation.conversation_id, r.turn) for r in found.results]
        scores += [r.score for r in found.results]
        if not found.next_page_token:
            break
        request.page_token = found.next_page_token
    assert len(seen) == len(set(seen)) == 90
    assert scores == sorted(scores, reverse=True)
    for other in (
        Search(query="other", page_token=request.page_token),
        Search(query="word", page_token=request.page_token.partition(":")[0] + ":x5"),
        Search(query="word", page_token=request.page_token.partition(":")[0] + ":w٥"),
        Search(query="word", page_token="nonsense"),
    ):
        with pytest.raises(MeshError) as raised:
            await archive.search(other, ALICE)
        assert raised.value.reason == "PAGE_TOKEN_INVALID"


async def test_of_common_words_the_newest_places_are_ranked(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_search, "_MOST_RANKED", 10)
    for index in range(30):
        await archive.save(conversation(f"word {index}"))
    found = {place[0] for place in await places(archive, "word", ALICE)}
    assert found == {f"word {index}" for index in range(20, 30)}


async def test_without_a_model_words_are_what_there_is(archive: Archive) -> None:
    await archive.save(conversation("word"))
    both = await archive.search(Search(query="word", mode=archive_pb.SEARCH_MODE_BOTH), ALICE)
    assert len(both.results) == 1
    assert not both.degraded
    with pytest.raises(MeshError) as raised:
        await archive.search(Search(query="word", mode=archive_pb.SEARCH_MODE_MEANING), ALICE)
    assert raised.value.reason == "NO_EMBEDDING_MODEL"


HOSTILE = [
    'word"',
    "word AND",
    "NOT word",
    "word NEAR(word, 2)",
    "words:word",
    "-word",
    "word*",
    "^word",
    "{words} : word",
    "word & | ! <-> (",
    "word:*",
    "'; DROP TABLE conversations; --",
    "word\0word",
    "word %_\\",
    "AND",
    "OR OR",
    "((((((((((((((word",
    "1e5 2.3.4 a@b.c http://x.y/z -5",
    "\u0303word\u200d",
    "x " * 2000,
    "𝕨𝕠𝕣𝕕",
]


async def test_nothing_in_a_query_is_syntax(archive: Archive) -> None:
    await archive.save(conversation("word and the text of a talk"))
    for query in HOSTILE:
        said = conversation("hostile", [turn(query)])
        await archive.save(said)
        found = await archive.search(Search(query=query), ALICE)
        assert said.conversation_id in {r.conversation.conversation_id for r in found.results}
    assert len(await places(archive, "talk", ALICE)) == 1


async def test_queries_without_words_are_refused(archive: Archive) -> None:
    for query in ("", "\0", "!?*", '"" ""', "\U0001f642", "x" * 5000):
        with pytest.raises(MeshError) as raised:
            await archive.search(Search(query=query), ALICE)
        assert raised.value.code.name == "INVALID_ARGUMENT"


async def test_texts_of_any_size_and_kind_are_kept(archive: Archive) -> None:
    said = [
        "needle " + "".join(f"w{index} " for index in range(300_000)),
        "".join(chr(0x4E00 + index % 20000) + " " for index in range(200_000)),
        "x" * 3_000_000,
        "\0" * 1000 + " needle",
    ]
    one = conversation("question", [turn(text, index) for index, text in enumerate(said, 1)])
    await archive.save(one)
    assert await archive.get(one.conversation_id, ALICE) == one
    assert {place[1] for place in await places(archive, "needle")} == {1, 4}
