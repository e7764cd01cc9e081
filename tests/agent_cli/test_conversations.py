"""`bxmesh conversation`."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from bxmesh.agent.v1 import conversation_pb2 as pb
from bxmesh.client import AgentAnswer, AsyncMesh, Question
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Run, start
from tests.conversations.talk import taking_part
from tests.sdk.agents import name, soon


class Voices:
    """Agents that take part, by name; `waits` answers when it may."""

    def __init__(self) -> None:
        self.a, self.b, self.broken, self.waits = (
            name(word) for word in ("a", "b", "broken", "waits")
        )
        self.go = asyncio.Event()

    def options(self, *agents: str) -> list[str]:
        return [word for agent in agents for word in ("-p", f"agent:{agent}")]

    def scripts(self) -> dict[str, Any]:
        def writes(question: Question) -> Any:
            async def write(context: Any) -> dict[str, Any]:
                for piece in ("B is\nbet", "ter"):
                    await context.progress(0, text=piece)
                answer = AgentAnswer(
                    text="B is\nbetter, as I see it",
                    answer="B",
                    confidence=0.75,
                    evidence=["R-free 0.2"],
                )
                return answer.model_dump()

            return write

        async def waits(question: Question) -> str:
            await self.go.wait()
            return "B"

        scripts = {
            self.a: writes,
            self.b: lambda question: "B",
            self.broken: lambda question: ValueError("no idea\x1b[2J"),
            self.waits: waits,
        }
        return {agent.replace("-", "_"): script for agent, script in scripts.items()}


@pytest.fixture
async def voices(mesh: AsyncMesh) -> AsyncIterator[Voices]:
    voices = Voices()
    async with taking_part(mesh, **voices.scripts()):
        yield voices


async def test_a_conversation_is_held_and_told(bxmesh: Run, voices: Voices) -> None:
    three = voices.options(voices.a, voices.b, voices.broken)
    held = await bxmesh("conversation", "hold", "Which is better?", *three, "--turns", 2)
    assert (held.code, held.stderr) == (0, "")
    first, who, *lines = held.stdout.splitlines()
    assert first.endswith(" begins: Which is better?")
    assert who == ", ".join(f"{one} (agent:{one})" for one in (voices.a, voices.b, voices.broken))
    width = len(voices.broken)
    for line in ("B is", "better, as I see it", "  → answer B, 75% sure"):
        assert lines.count(f"{voices.a:{width}} │ {line}") == 2
    assert lines.count(f"{voices.b:{width}} │ B") == 2
    left = next(line for line in lines if line.startswith(f"{voices.broken} is left out: "))
    assert "no idea" in left
    assert "\x1b" not in left
    heads = [line for line in lines if line.startswith("──")]
    assert heads == [
        line
        for turn in (1, 2)
        for line in (
            f"── turn {turn}",
            f"── consensus after turn {turn}",
            f"── turn {turn} is over",
        )
    ]
    sure = [line for line in lines if " sure: B" in line]
    assert len(sure) == 2
    assert re.fullmatch(r"█+░+ +\d+% sure: .*", sure[-1])
    assert lines.count("evidence R-free 0.2") == 2
    assert lines[-1].startswith("completed in ")

    conversation = first.split()[0]
    shown = await bxmesh("conversation", "show", conversation)
    for words in ("Which is better?", "75%", "no idea", "B is better", "evidence R-free", "admin"):
        assert words in shown.stdout
    whole = (await bxmesh("conversation", "show", conversation, "--json")).json
    assert (whole["state"], whole["consensus"]["answer"]) == ("completed", "B")
    followed = await bxmesh("conversation", "follow", conversation, "--json")
    events = [json.loads(line) for line in followed.stdout.splitlines()]
    assert followed.code == 0
    assert (events[0]["kind"], events[-1]["kind"]) == ("started", "ended")
    assert events[-1]["ended"] == whole
    again = await bxmesh("conversation", "follow", conversation, "--after", events[-2]["revision"])
    # Only the end is told, which has it all.
    assert f"{voices.b:{width}} │ B" in again.stdout.splitlines()


async def test_one_is_continued(bxmesh: Run, voices: Voices) -> None:
    held = await bxmesh(
        "conversation", "hold", "-", *voices.options(voices.b), "--json", stdin="Which?"
    )
    assert (held.json["question"], held.json["state"]) == ("Which?", "completed")
    conversation = held.json["conversation_id"]
    sent = await bxmesh("conversation", "send", conversation, "Sure?")
    assert sent.stdout.splitlines()[0].endswith(" begins: Sure?")
    assert f"{voices.b} │ B" in sent.stdout.splitlines()
    sent = await bxmesh("conversation", "send", conversation, "Really?", "--json")
    assert [turn["text"] for turn in sent.json["turns"]] == ["B", "Sure?", "B", "Really?", "B"]


async def test_one_that_fails(bxmesh: Run, voices: Voices) -> None:
    failed = await bxmesh("conversation", "hold", "Which?", *voices.options(voices.broken))
    assert failed.code == 1
    assert failed.stdout.splitlines()[-1].startswith("failed in ")
    listed = await bxmesh("conversation", "list", "--state", "failed", "--limit", 1)
    assert failed.stdout.split()[0] in listed.stdout


async def test_one_is_started_and_cancelled(bxmesh: Run, voices: Voices) -> None:
    options = (*voices.options(voices.waits), "--request-id", name("once"))
    started = await bxmesh("conversation", "start", "Which?", *options)
    conversation = started.stdout.strip()
    again = (await bxmesh("conversation", "start", "Which?", *options, "--json")).json
    assert again["conversation_id"] == conversation
    busy = await bxmesh("conversation", "delete", conversation)
    assert (busy.code, "Error: " in busy.stderr) == (1, True)
    cancelled = await bxmesh("conversation", "cancel", conversation)
    assert cancelled.stdout == f"{conversation} cancelled\n"
    followed = await bxmesh("conversation", "follow", conversation)
    assert (followed.code, "cancelled in " in followed.stdout) == (1, True)


async def test_what_is_said_of_participants(bxmesh: Run, voices: Voices) -> None:
    held = await bxmesh(
        "conversation",
        "hold",
        "Which?",
        "-p",
        f"agent:{voices.a},id=first,weight=2.5,personality=critical,instructions=Doubt, always.",
        "-p",
        "model:openai:qwen,temperature=0.5,url=http://127.0.0.1:1/v1,id=model",
        *("--method", "weighted", "--quorum", 1, "--label", "of=it", "--title", "T"),
        *("--judge", f"agent:{voices.b}", "--max-answer-duration", 1, "--json"),
    )
    participants = held.json["participants"]
    first, model = participants
    assert (first["id"], first["weight"], first["personality"]) == ("first", 2.5, "critical")
    assert first["instructions"] == "Doubt, always."
    assert model["model"]["model"] == "openai:qwen"
    assert model["model"]["temperature"] == 0.5
    assert model["model"]["base_url"] == "http://127.0.0.1:1/v1"
    assert (held.json["title"], held.json["labels"]) == ("T", {"of": "it"})
    assert held.json["consensus"]["method"] == "weighted"


async def test_they_are_found_exported_and_purged(
    bxmesh: Run, voices: Voices, tmp_path: Path
) -> None:
    word = name("word").replace("-", "")
    ids = []
    for number in range(3):
        held = await bxmesh(
            *("conversation", "hold", f"{word} {number}", *voices.options(voices.b)),
            *("--label", f"of={word}", "--json"),
        )
        ids.append(held.json["conversation_id"])
    of_it = ("--label", f"of={word}")
    listed = await bxmesh("conversation", "list", *of_it, "--limit", 2, "--json")
    assert [one["conversation_id"] for one in listed.json] == [ids[2], ids[1]]
    assert "more than 2" in (await bxmesh("conversation", "list", *of_it, "--limit", 2)).stderr
    found = await bxmesh("conversation", "search", word, "--mode", "text")
    assert all(one in found.stdout for one in ids)
    places = (await bxmesh("conversation", "search", word, "--limit", 1, "--json")).json
    assert (places[0]["turn"], word in places[0]["snippet"]) == (0, True)

    file = tmp_path / "all.jsonl"
    exported = await bxmesh("conversation", "export", *of_it, "-o", file)
    assert (exported.stdout, exported.stderr) == ("", f"3 conversations written to {file}\n")
    lines = file.read_text().splitlines()
    read = [json_format.Parse(line, pb.Conversation()) for line in lines]
    assert [one.conversation_id for one in read] == ids
    assert [turn.text for turn in read[0].turns] == ["B"]
    assert (await bxmesh("conversation", "export", *of_it)).stdout.splitlines() == lines

    assert (await bxmesh("conversation", "delete", ids[0])).stdout == f"{ids[0]} deleted\n"
    gone = await bxmesh("conversation", "show", ids[0])
    assert (gone.code, "bxmesh conversation list" in gone.stderr) == (1, True)
    purge = ("conversation", "purge", "--before", "2020-01-01")
    assert (await bxmesh(*purge, "--dry-run")).stdout.startswith("0 conversations would be")
    assert (await bxmesh(*purge, "--yes", "--json")).json["conversations"] == 0
    assert (await bxmesh(*purge, stdin="n\n")).code == 1
    stats = await bxmesh("conversation", "stats", "--days", 2)
    assert "answers" in stats.stdout
    figures = (await bxmesh("conversation", "stats", "--json")).json
    assert figures["recent_conversations"] >= 2


async def test_an_interrupt_leaves_it_to_go_on(
    bxmesh: Run, shared_server: EmbeddedMesh, mesh: AsyncMesh, voices: Voices
) -> None:
    process = await start(
        shared_server, "conversation", "hold", "Which?", *voices.options(voices.waits)
    )
    assert process.stdout is not None
    conversation = (await soon(process.stdout.readline())).decode().split()[0]
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    assert process.returncode == 1
    assert f"{conversation} goes on".encode() in errors
    assert b"Traceback" not in errors
    voices.go.set()
    assert (await soon(mesh.conversations.wait(conversation))).value == "B"


@pytest.mark.parametrize(
    "words",
    [
        ("hold",),
        ("hold", "a", "-p", "human:a"),
        ("hold", "a", "-p", "agent:"),
        ("hold", "a", "-p", "agent:a,colour=red"),
        ("hold", "a", "-p", "agent:a,weight=much"),
        ("hold", "a", "-p", "agent:a,temperature=1"),
        ("hold", "a", "-p", "agent:a,personality=mean"),
        ("hold", "a", "--method", "dice"),
        ("hold", "@/no/such/file"),
        ("list", "--state", "asleep"),
        ("cancel",),
        ("purge",),
        ("stats", "--days", "91"),
    ],
)
async def test_what_makes_no_sense_is_refused(bxmesh: Run, words: tuple[str, ...]) -> None:
    ended = await bxmesh("conversation", *words)
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)
