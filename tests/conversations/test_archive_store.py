"""Conversations in SQLite and PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from sqlalchemy import func, select, text

from bxmesh.agent.v1 import conversation_archive_pb2 as archive_pb
from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.security.v1.visibility_pb2 import VISIBILITY_ALL, VISIBILITY_TEAM
from bxmesh.server.conversations.archive import Archive, open_archive
from bxmesh.server.database import Database, open_database
from bxmesh.server.database.migration import downgrade, upgrade
from bxmesh.server.database.tables import CONVERSATION_MESSAGES, CONVERSATIONS
from bxmesh.server.errors import MeshError
from tests.conversations.archived import (
    ALICE,
    BEGIN,
    BOB,
    CAROL,
    OPERATOR,
    at,
    conversation,
    turn,
)

Filter = archive_pb.ConversationFilter
List = archive_pb.ListConversationsRequest
Export = archive_pb.ExportConversationsRequest


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


@pytest.fixture
async def archive(database: Database) -> AsyncIterator[Archive]:
    async with open_archive(database, None) as opened:
        yield opened


async def messages_of(archive: Archive, **fields: object) -> list[str]:
    found, _ = await archive.list(List(filter=Filter(**fields)), None)  # type: ignore[arg-type]
    return [one.spec.message for one in found]


async def test_what_is_saved_comes_back_whole(archive: Archive) -> None:
    saved = conversation(
        "How good is it?\0",
        [
            turn("Good.\0", start_time=at(1), end_time=at(2), model="openai:gpt", output_tokens=3),
            turn("", 1, "ben"),
            turn("Better: 0.21", 2),
        ],
        labels={"project": "lysozyme"},
    )
    saved.turns[1].error.code = 4
    saved.turns[2].answer.struct_value.update({"r_free": 0.21})
    saved.consensus.text = "good"
    assert await archive.save(saved)
    assert await archive.get(saved.conversation_id, ALICE) == saved
    assert await archive.save(saved)
    assert await archive.get(saved.conversation_id, ALICE) == saved


async def test_an_older_revision_never_takes_the_place_of_a_newer_one(archive: Archive) -> None:
    old = conversation("q", [turn("one")], state=pb.CONVERSATION_STATE_RUNNING, revision=3)
    new = pb.Conversation()
    new.CopyFrom(old)
    new.turns.append(turn("two", 2))
    new.turns[0].text = "one, mended"
    new.state, new.revision = pb.CONVERSATION_STATE_COMPLETED, 5
    assert await archive.save(new)
    assert not await archive.save(old)
    assert await archive.get(new.conversation_id, None) == new
    shorter = pb.Conversation()
    shorter.CopyFrom(new)
    del shorter.turns[1]
    shorter.revision = 6
    assert await archive.save(shorter)
    assert await archive.get(new.conversation_id, None) == shorter


async def test_who_sees_what(archive: Archive) -> None:
    private = conversation("private")
    shared = conversation("shared", visibility=VISIBILITY_TEAM)
    public = conversation("public", visibility=VISIBILITY_ALL)
    teamless = conversation("teamless", visibility=VISIBILITY_TEAM)
    for one, team in ((private, ""), (shared, "crystal"), (public, ""), (teamless, "")):
        await archive.save(one, team)
        # Later saves do not say anew who sees it.
        await archive.save(one, "other")
    for identity, seen in (
        (ALICE, {"private", "shared", "public", "teamless"}),
        (BOB, {"shared", "public"}),
        (CAROL, {"public"}),
        (OPERATOR, {"private", "shared", "public", "teamless"}),
    ):
        found, _ = await archive.list(List(), identity)
        assert {one.spec.message for one in found} == seen
        exported = [one async for one in archive.export(Export(), identity)]
        assert {one.conversation.spec.message for one in exported} == seen
        for one in (private, shared, public, teamless):
            if one.spec.message in seen:
                await archive.get(one.conversation_id, identity)
            else:
                with pytest.raises(MeshError) as raised:
                    await archive.get(one.conversation_id, identity)
                assert raised.value.reason == "CONVERSATION_NOT_FOUND"


async def test_filters(archive: Archive) -> None:
    await archive.save(conversation("a", begin=100, labels={"p": "1", "q": "x" * 1024}))
    await archive.save(conversation("b", begin=200, labels={"p": "1"}, owner="bob"))
    await archive.save(
        conversation("c", begin=300, labels={"p": "2"}, state=pb.CONVERSATION_STATE_RUNNING)
    )
    assert await messages_of(archive) == ["c", "b", "a"]
    assert await messages_of(archive, labels={"p": "1"}) == ["b", "a"]
    assert await messages_of(archive, labels={"p": "1", "q": "x" * 1024}) == ["a"]
    assert await messages_of(archive, labels={"p": "3"}) == []
    assert await messages_of(archive, owner="bob") == ["b"]
    assert await messages_of(archive, owner="b\0b") == []
    assert await messages_of(archive, states=[pb.CONVERSATION_STATE_RUNNING]) == ["c"]
    assert await messages_of(archive, start_time=at(200)) == ["c", "b"]
    assert await messages_of(archive, end_time=at(200)) == ["a"]
    assert await messages_of(archive, start_time=at(200), end_time=at(300)) == ["b"]
    far = at(0)
    far.seconds = 2**62
    assert await messages_of(archive, start_time=far) == []


async def test_pages_the_newest_first_without_what_was_said(archive: Archive) -> None:
    for index in range(50):
        # Some begin at the same moment.
        await archive.save(conversation(f"m{index}", [turn("said")], begin=index // 3))
    seen: list[str] = []
    request = List(page_size=7)
    while True:
        page, token = await archive.list(request, ALICE)
        assert len(page) == 7 or not token
        assert not any(one.turns for one in page)
        seen += [one.conversation_id for one in page]
        if not token:
            break
        request.page_token = token
    everything, _ = await archive.list(List(page_size=1000), ALICE)
    assert len(set(seen)) == 50
    assert seen == [one.conversation_id for one in everything]
    times = [one.create_time.seconds for one in everything]
    assert times == sorted(times, reverse=True)


async def test_large_conversations_make_small_pages(archive: Archive) -> None:
    for _ in range(6):
        await archive.save(conversation("x" * 1_000_000))
    page, token = await archive.list(List(), ALICE)
    assert len(page) == 2
    assert token


@pytest.mark.parametrize("place", ["", "x", ".", "1.", "-1.a", "9" * 19 + ".a", "1.a\0", "١.a"])
async def test_tokens_of_something_else_are_refused(archive: Archive, place: str) -> None:
    for index in range(3):
        await archive.save(conversation(f"m{index}"))
    _, token = await archive.list(List(page_size=1), ALICE)
    digest = token.partition(":")[0]
    request = List(page_token=f"{digest}:{place}")
    with pytest.raises(MeshError) as raised:
        await archive.list(request, ALICE)
    assert raised.value.reason == "PAGE_TOKEN_INVALID"
    with pytest.raises(MeshError) as raised:
        await archive.list(List(page_token=token, filter=Filter(owner="alice")), ALICE)
    assert raised.value.reason == "PAGE_TOKEN_INVALID"


async def test_an_export_goes_on_where_it_broke_off(archive: Archive) -> None:
    for index in range(45):
        await archive.save(conversation(f"m{index}", [turn(f"said {index}")]))
    whole = [one async for one in archive.export(Export(), ALICE)]
    assert [one.conversation.spec.message for one in whole] == [f"m{i}" for i in range(45)]
    assert [one.conversation.turns[0].text for one in whole] == [f"said {i}" for i in range(45)]
    rest = archive.export(Export(resume_token=whole[29].resume_token), ALICE)
    assert [one async for one in rest] == whole[30:]
    other = Export(resume_token=whole[0].resume_token, filter=Filter(owner="bob"))
    with pytest.raises(MeshError) as raised:
        _ = [one async for one in archive.export(other, ALICE)]
    assert raised.value.reason == "PAGE_TOKEN_INVALID"


async def test_deleting(archive: Archive, database: Database) -> None:
    mine = conversation("mine", [turn("said")], visibility=VISIBILITY_ALL)
    running = conversation("running", state=pb.CONVERSATION_STATE_RUNNING)
    await archive.save(mine)
    await archive.save(running)
    for name, identity, reason in (
        (mine.conversation_id, BOB, "NOT_THE_OWNER"),
        (running.conversation_id, BOB, "CONVERSATION_NOT_FOUND"),
        (running.conversation_id, ALICE, "CONVERSATION_RUNNING"),
        ("none", ALICE, "CONVERSATION_NOT_FOUND"),
        ("no\0ne", ALICE, "CONVERSATION_NOT_FOUND"),
    ):
        with pytest.raises(MeshError) as raised:
            await archive.delete(name, identity)
        assert raised.value.reason == reason
    await archive.delete(mine.conversation_id, ALICE)
    with pytest.raises(MeshError):
        await archive.get(mine.conversation_id, ALICE)
    async with database.reading() as connection:
        left = await connection.scalar(select(func.count()).select_from(CONVERSATION_MESSAGES))
        assert left == 1
        indexed = await connection.scalar(text("SELECT count(*) FROM conversation_search"))
        assert indexed == 1


async def test_purging(archive: Archive, database: Database) -> None:
    for index in range(450):
        await archive.save(conversation(f"m{index}", [turn("said")], begin=index))
    await archive.save(conversation("open", begin=0, state=pb.CONVERSATION_STATE_RUNNING))
    with pytest.raises(MeshError) as raised:
        await archive.purge(Filter(owner="alice"))
    assert raised.value.field_violations[0][0] == "filter.end_time"
    wanted = Filter(end_time=at(420))
    counted = await archive.purge(wanted, validate_only=True)
    assert counted.conversations == 420
    assert dict(counted.deleted_by_store) == {"database": 3 * 420, "vectors": 0}
    assert len(await messages_of(archive)) == 100
    assert await archive.purge(wanted) == counted
    left = await messages_of(archive)
    assert left == [f"m{index}" for index in reversed(range(420, 450))] + ["open"]
    assert (await archive.purge(wanted)).conversations == 0


async def test_others_hear_of_what_goes_before_it_goes(database: Database) -> None:
    told: list[str] = []

    async def also(names: object) -> None:
        assert isinstance(names, list)
        async with database.reading() as connection:
            there = await connection.scalars(select(CONVERSATIONS.c.conversation_id))
            assert set(names) <= set(there)
        told.extend(names)

    async with open_archive(database, None, also) as archive:
        gone = conversation("gone")
        gone.expire_time.FromSeconds(int(time.time()) - 5)
        later = conversation("later")
        later.expire_time.FromSeconds(int(time.time()) + 500)
        running = conversation("running", state=pb.CONVERSATION_STATE_RUNNING)
        running.expire_time.CopyFrom(gone.expire_time)
        for one in (gone, later, running, conversation("always")):
            await archive.save(one)
        assert await archive.forget_expired() == 1
        assert told == [gone.conversation_id]
        assert set(await messages_of(archive)) == {"later", "running", "always"}


async def test_the_migration_goes_down_and_up(database: Database) -> None:
    async with open_archive(database, None) as archive:
        await archive.save(conversation("before", [turn("said")]))
        async with database.writing() as connection:
            await connection.run_sync(downgrade, "0002")
        async with database.writing() as connection:
            await connection.run_sync(upgrade)
        assert await messages_of(archive) == []
        saved = conversation("after")
        await archive.save(saved)
        assert await archive.get(saved.conversation_id, ALICE) == saved


async def test_figures(archive: Archive) -> None:
    now = time.time() - BEGIN

    def answer(seconds: float, model: str, *, failed: bool = False) -> pb.Turn:
        made = turn("said", start_time=at(now - 100), end_time=at(now - 100 + seconds))
        made.model, made.input_tokens, made.output_tokens = model, 10, 5
        if failed:
            made.error.code = 4
        return made

    answers = [answer(seconds, "a") for seconds in range(1, 101)]
    # The next question, which nobody answered.
    answers.append(turn("and then?", 101, "", start_time=at(now - 50), end_time=at(now - 50)))
    await archive.save(conversation("one", answers, begin=now - 200))
    await archive.save(
        conversation(
            "two",
            [answer(7, "b"), answer(50, "b", failed=True), answer(7, "")],
            begin=now - 200,
            state=pb.CONVERSATION_STATE_FAILED,
        )
    )
    old = now - 10 * 86400
    await archive.save(conversation("old", [turn("x", end_time=at(old))], begin=old - 10))
    await archive.save(
        conversation("open", begin=now - 5, state=pb.CONVERSATION_STATE_RUNNING, owner="bob")
    )
    figures = await archive.statistics(None)
    assert figures.total_conversations == 4
    assert figures.recent_conversations == 3
    assert figures.running_conversations == 1
    assert figures.average_duration.ToTimedelta().total_seconds() == 10
    assert figures.success_rate == 0.5
    assert (figures.answers, figures.errors) == (102, 1)
    assert set(figures.models) == {"a", "b"}
    assert figures.models["a"].average_duration.ToTimedelta().total_seconds() == 50.5
    assert figures.models["a"].tokens == 1500
    assert (figures.models["b"].answers, figures.models["b"].errors) == (1, 1)
    assert figures.models["b"].average_duration.ToTimedelta().total_seconds() == 7
    p50, p95, p99 = np.quantile([*range(1, 101), 7, 7], (0.5, 0.95, 0.99))
    for quantile, wanted in (
        (figures.latency_p50, p50),
        (figures.latency_p95, p95),
        (figures.latency_p99, p99),
    ):
        assert quantile.ToTimedelta().total_seconds() == pytest.approx(wanted, abs=0.001)
    assert (await archive.statistics(ALICE)).running_conversations == 0
    assert (await archive.statistics(CAROL)) == archive_pb.GetConversationStatsResponse()
    assert (await archive.statistics(None, 20 * 86400)).answers == 103


async def test_no_figures_of_nothing(archive: Archive) -> None:
    assert await archive.statistics(None) == archive_pb.GetConversationStatsResponse()
