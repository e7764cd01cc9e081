"""Conversations from Python."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from bxmesh.client import (
    AgentAnswer,
    AsyncMesh,
    ConversationFailed,
    FailedPrecondition,
    InvalidInput,
    Mesh,
    ModelSettings,
    NotFound,
    Participant,
    Question,
)
from bxmesh.server.embedded import EmbeddedMesh
from tests.conversations.talk import taking_part
from tests.sdk.agents import name as unique
from tests.sdk.agents import soon
from tests.sdk.conftest import client, start_mesh


def says(text: str, confidence: float | None = None, *evidence: str) -> Any:
    answer = AgentAnswer(text=text, confidence=confidence, evidence=list(evidence))
    return lambda question: answer.model_dump()


def names(*words: str) -> tuple[str, ...]:
    """Names of agents that no other test has, as scripts have them."""
    return tuple(unique(word).replace("-", "_") for word in words)


def agents(*scripts: str) -> list[str]:
    return [f"agent:{one.replace('_', '-')}" for one in scripts]


async def test_a_conversation_is_held_to_its_end(mesh: AsyncMesh) -> None:
    a, b, c = names("a", "b", "c")
    scripts = {a: says("Yes.", 0.9, "sha256:1"), b: says("yes", 0.7, "R 0.2"), c: says("No", 1.0)}
    async with taking_part(mesh, **scripts):
        found = await soon(
            mesh.conversations.hold(
                "Is it so?",
                participants=[
                    *agents(a, b),
                    Participant("doubter", agent=c.replace("_", "-"), weight=2.0),
                ],
                turns=2,
                title="So",
                labels={"kind": "test"},
            )
        )
    assert (found.state, found.done, found.title, found.question) == (
        "completed",
        True,
        "So",
        "Is it so?",
    )
    assert (found.error, found.owner, dict(found.labels)) == (None, "admin", {"kind": "test"})
    assert (found.value.lower().rstrip("."), found.outcome.turn) == ("yes", 2)
    assert found.outcome.evidence == ("sha256:1", "R 0.2")
    yes, no = found.outcome.groups
    assert (len(yes.participant_ids), no.participant_ids) == (2, ("doubter",))
    assert yes.share == pytest.approx(2 / 3)
    assert [turn.turn for turn in found.turns] == [1, 1, 1, 2, 2, 2]
    doubter = found.participants[2]
    assert (doubter.id, doubter.source, doubter.weight) == ("doubter", agents(c)[0], 2.0)
    assert found.duration is not None
    assert found.duration > 0
    assert found == await mesh.conversations.get(found.conversation_id)
    assert found == await mesh.conversations.wait(found.conversation_id)


async def test_one_that_fails_raises_when_it_is_asked_for_its_value(mesh: AsyncMesh) -> None:
    (a,) = names("a")
    async with taking_part(mesh, **{a: lambda question: ValueError("no idea")}):
        found = await soon(mesh.conversations.hold("Which?", participants=agents(a)))
    assert (found.state, found.consensus) == ("failed", None)
    for what in ("value", "outcome"):
        with pytest.raises(ConversationFailed) as raised:
            getattr(found, what)
        assert raised.value.reason == "NO_QUORUM"
        assert raised.value.conversation is found
        assert raised.value.metadata["conversation_id"] == found.conversation_id
    [turn] = found.turns
    assert turn.error is not None
    assert "no idea" in turn.error.message


async def test_what_is_written_is_streamed(mesh: AsyncMesh) -> None:
    writer, other = names("writer", "other")
    go_on = asyncio.Event()

    def script(question: Question) -> Any:
        async def write(context: Any) -> str:
            for piece in ("It ", "is ", "so"):
                await context.progress(0, text=piece)
            await go_on.wait()
            return "It is so"

        return write

    request_id = unique("request")
    written, kinds = "", []
    options: Any = {"participants": agents(writer, other), "request_id": request_id}
    async with taking_part(mesh, **{writer: script, other: says("It is so")}):
        async with aclosing(mesh.conversations.stream("So?", **options)) as events:
            async for event in events:
                kinds.append(event.kind)
                assert getattr(event, event.kind) is not None
                if event.delta is not None:
                    written += event.delta.text
                    if written == "It is so":
                        go_on.set()
    assert written == "It is so"
    assert (kinds[0], kinds[-3:]) == ("started", ["consensus", "turn_ended", "ended"])
    # The same request is the same conversation, though nobody is there to answer any more.
    again = await soon(mesh.conversations.hold("So?", **options))
    assert again.conversation_id == event.conversation_id
    assert event.ended == again
    told = mesh.conversations.follow(again.conversation_id, deltas=False)
    assert [one.kind async for one in told] == [
        "started",
        "answered",
        "answered",
        "consensus",
        "turn_ended",
        "ended",
    ]
    rest = mesh.conversations.follow(again.conversation_id, after_revision=event.revision - 1)
    assert [one.kind async for one in rest] == ["ended"]


async def test_one_is_started_cancelled_and_continued(mesh: AsyncMesh) -> None:
    (a,) = names("a")
    began, answer = asyncio.Event(), asyncio.Event()

    async def script(question: Question) -> str:
        began.set()
        await answer.wait()
        return f"{len(question.earlier)} before {question.message}"

    async with taking_part(mesh, **{a: script}):
        started = await mesh.conversations.start("first", participants=agents(a))
        assert (started.state, started.done, started.duration) == ("pending", False, None)
        with pytest.raises(FailedPrecondition, match="wait for its end"):
            _ = started.value
        await soon(began.wait())
        with pytest.raises(FailedPrecondition):
            await mesh.conversations.send(started.conversation_id, "too early")
        cancelled = await mesh.conversations.cancel(started.conversation_id)
        assert cancelled.state == "cancelled"
        with pytest.raises(ConversationFailed) as raised:
            _ = cancelled.value
        assert raised.value.reason == "CONVERSATION_CANCELLED"
        answer.set()
        sent = await mesh.conversations.send(started.conversation_id, "second", turns=2)
        assert not sent.done
        ended = await soon(mesh.conversations.wait(started.conversation_id))
    assert (ended.value, ended.state) == ("2 before second", "completed")
    assert [(turn.turn, bool(turn.participant_id)) for turn in ended.turns] == [
        (1, False),
        (2, True),
        (3, True),
    ]


async def test_they_are_kept_found_exported_and_deleted(mesh: AsyncMesh) -> None:
    (a,) = names("a")
    label = {"of": unique("test")}
    word = unique("word").replace("-", "")
    held = []
    async with taking_part(mesh, **{a: says(f"I say {word}")}):
        for question in ("one", "two", "three"):
            held.append(
                await mesh.conversations.hold(question, participants=agents(a), labels=label)
            )
    ids = [one.conversation_id for one in held]
    listed = [one async for one in mesh.conversations.list(labels=label, page_size=2)]
    assert [one.conversation_id for one in listed] == ids[::-1]
    assert {one.turns for one in listed} == {()}
    places = [one async for one in mesh.conversations.search(word, mode="text", labels=label)]
    assert {one.conversation.conversation_id for one in places} == set(ids)
    assert all(word in one.snippet and one.turn == 1 for one in places)
    exported = [one async for one in mesh.conversations.export(labels=label)]
    assert [one.conversation for one in exported] == held
    token = exported[0].resume_token
    rest = [one async for one in mesh.conversations.export(labels=label, resume_token=token)]
    assert [one.conversation for one in rest] == held[1:]
    await mesh.conversations.delete(ids[0])
    with pytest.raises(NotFound):
        await mesh.conversations.get(ids[0])
    soon_after = datetime.now(UTC) + timedelta(minutes=1)
    for dry_run in (True, False):
        purged = await mesh.conversations.purge(labels=label, before=soon_after, dry_run=dry_run)
        assert purged.conversations == 2
    assert [one async for one in mesh.conversations.list(labels=label)] == []
    stats = await mesh.conversations.stats(period=3600.0)
    assert stats.total_conversations >= stats.recent_conversations
    with pytest.raises(InvalidInput):
        await mesh.conversations.purge(labels=label)


async def test_a_server_that_is_lost_is_waited_for(state_dir: Path) -> None:
    async def script(question: Question) -> str:
        if question.turn == 2:
            second.set()
        await asyncio.sleep(0.5)
        return "A"

    second = asyncio.Event()
    with start_mesh(state_dir, BXMESH_WORK_LEASE="1") as server:
        async with client(server) as mesh, taking_part(mesh, a=script):
            holding = asyncio.create_task(
                mesh.conversations.hold("Which?", participants="agent:a", turns=3)
            )
            await soon(second.wait())
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            found = await soon(holding, 60.0)
    assert (found.value, found.outcome.turn, len(found.turns)) == ("A", 3, 3)


async def test_a_search_says_when_it_went_by_words_alone(state_dir: Path) -> None:
    async def found(mesh: AsyncMesh, mode: Literal["text"] | None = None) -> list[bool]:
        return [one.degraded async for one in mesh.conversations.search("which", mode=mode)]

    away = {
        # Nobody listens there.
        "BXMESH_EMBEDDING_URL": "http://127.0.0.1:9/v1",
        "BXMESH_EMBEDDING_MODEL": "away",
        "BXMESH_EMBEDDING_DIMENSION": "3",
    }
    with start_mesh(state_dir, **away) as server:
        async with client(server) as mesh, taking_part(mesh, a=says("A")):
            await soon(mesh.conversations.hold("Which?", participants="agent:a"))
            assert await found(mesh) == [True]
            assert await found(mesh, "text") == [False]


def test_participants() -> None:
    for text in ("agent:a", "definition:b", "capability:c.d", "model:openai:gpt-5", "model:"):
        participant = Participant.parse(text)
        assert participant.source == text
        assert Participant.from_message(participant.to_message()) == participant
    whole = Participant(
        "critic",
        model=ModelSettings("openai:qwen", base_url="http://127.0.0.1/v1", temperature=0.3),
        personality="critical",
        instructions="Doubt.",
        weight=0.5,
    )
    assert Participant.from_message(whole.to_message()) == whole
    for wrong in ("a", "agent:", "human:a"):
        with pytest.raises(InvalidInput, match="is no participant"):
            Participant.parse(wrong)
    for nobody in (Participant("a"), Participant("a", agent="b", capability="c")):
        with pytest.raises(InvalidInput, match="give it an agent"):
            nobody.to_message()


async def test_without_asyncio(shared_server: EmbeddedMesh, mesh: AsyncMesh) -> None:
    a, b = names("a", "b")

    def talk() -> None:
        with Mesh(shared_server.address, state_dir=shared_server.state_dir) as blocking:
            found = blocking.conversations.hold(
                "How many?", participants=agents(a, b), method="numeric"
            )
            assert (found.value, found.outcome.method) == (2, "numeric")
            name = found.conversation_id
            kinds = [event.kind for event in blocking.conversations.follow(name)]
            assert (kinds[0], kinds[-1]) == ("started", "ended")
            blocking.conversations.delete(name)

    async with taking_part(mesh, **{a: lambda question: 2, b: says("2")}):
        await soon(asyncio.to_thread(talk))
