"""`bxmesh messages` and `bxmesh dead-letters`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from tests.agent_cli.conftest import Helper, Run
from tests.processes import until
from tests.sdk.agents import name, soon


async def test_a_message_is_sent(bxmesh: Run, helper: Helper, tmp_path: Path) -> None:
    to = ("messages", "send", "--to", helper.agent_id, "--type", "note")
    sent = await bxmesh(*to, '{"a": [1, "ü"]}', "--priority", "high")
    assert f"in the mailbox of {helper.agent_id}" in sent.stdout
    message = await soon(helper.got.get())
    assert (message.payload, message.priority) == ({"a": [1, "ü"]}, "high")
    (tmp_path / "payload.json").write_text("[1, 2]")
    await bxmesh(*to, f"@{tmp_path / 'payload.json'}")
    await bxmesh(*to, "-", stdin='"from stdin"')
    await bxmesh(*to)
    assert [(await soon(helper.got.get())).payload for _ in range(3)] == [
        [1, 2],
        "from stdin",
        None,
    ]
    receipt = (await bxmesh(*to, "1", "--json")).json
    assert (await soon(helper.got.get())).id == receipt["message_id"]


async def test_a_reply_is_waited_for(bxmesh: Run, helper: Helper) -> None:
    to = ("messages", "send", "--to", helper.agent_id, "--type", "greet", '"you"', "--wait", "20")
    answered = await bxmesh(*to)
    assert json.loads(answered.stdout) == {"hello": "you"}
    assert f"{helper.agent_id} answers with greeting" in answered.stderr
    whole = (await bxmesh(*to, "--json")).json
    assert (whole["payload"], whole["message_type"]) == ({"hello": "you"}, "greeting")
    assert whole["priority"] == "medium"
    direct = await bxmesh(*to, "--direct")
    assert json.loads(direct.stdout) == {"hello": "you"}
    silent = await bxmesh(
        "messages", "send", "--to", helper.agent_id, "--type", "note", "--wait", "0.2"
    )
    assert (silent.code, "NO_REPLY" in silent.stderr) == (1, True)


async def test_direct_messages(bxmesh: Run, helper: Helper, mesh: AsyncMesh) -> None:
    to = ("messages", "send", "--type", "note", "--direct", "--to")
    sent = await bxmesh(*to, helper.agent_id, "5")
    assert f"reached 1 connection of {helper.agent_id}" in sent.stdout
    assert (await soon(helper.got.get())).delivery_mode == "direct"
    gone = await bxmesh(*to, "nobody")
    assert (gone.code, "AGENT_NOT_FOUND" in gone.stderr) == (1, True)


async def test_messages_for_who_is_not_there(bxmesh: Run) -> None:
    to = ("messages", "send", "--type", "note", "--to", name("absent"))
    assert (await bxmesh(*to)).code == 1
    held = await bxmesh(*to, "--hold")
    assert (held.code, "is held until" in held.stdout) == (0, True)


async def test_broadcasts(bxmesh: Run, helper: Helper) -> None:
    to = ("messages", "send", "--type", "note", "1")
    sent = (await bxmesh(*to, "--capability", "sum", "--json")).json
    assert sent["recipients"] >= 1
    await soon(helper.got.get())
    nobody = await bxmesh(*to, "--capability", "alchemy")
    assert (nobody.code, "went to 0 agents" in nobody.stdout) == (1, True)


@pytest.mark.parametrize(
    "words",
    [
        ("send", "--type", "note"),
        ("send", "--type", "note", "--to", "a", "--capability", "b"),
        ("send", "--to", "a"),
        ("send", "--type", "note", "--to", "a", "{no json"),
        ("send", "--type", "note", "--to", "a", "NaN]"),
        ("send", "--type", "note", "--to", "a", "@/no/such/file"),
        ("send", "--type", "note", "--to", "a", "[" * 100_000),
        ("send", "--type", "note", "--capability", "b", "--wait", "1"),
        ("send", "--type", "note", "--to", "a", "--wait", "0"),
        ("send", "--type", "note", "--to", "a", "--direct", "--hold"),
        ("send", "--type", "note", "--to", "a", "--priority", "huge"),
        ("replay", "a"),
        ("replay", "a", "--since", "1h", "--from-entry", "1-1"),
        ("replay", "a", "--since", "yesterday"),
        ("replay", "a", "--since", "99999999999d"),
    ],
)
async def test_what_makes_no_sense_is_refused(bxmesh: Run, words: tuple[str, ...]) -> None:
    ended = await bxmesh("messages", *words)
    assert ended.code == 2
    assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_what_the_mesh_refuses(bxmesh: Run, helper: Helper) -> None:
    to = ("messages", "send", "--to", helper.agent_id)
    bad = await bxmesh(*to, "--type", "no type")
    assert (bad.code, "INVALID_ARGUMENT" in bad.stderr) == (1, True)
    forged = await bxmesh(*to, "--type", "note", "--sender", "somebody-else")
    assert (forged.code, "SENDER_FORGED" in forged.stderr) == (1, True)


async def test_messages_are_replayed(bxmesh: Run, helper: Helper, mesh: AsyncMesh) -> None:
    for number in range(3):
        await mesh.send(helper.agent_id, f"note.{number}", number)
    entries = [(await soon(helper.got.get())).entry_id for _ in range(3)]

    async def acknowledged() -> bool:
        return [q.acknowledged async for q in mesh.queue_stats(agent_id=helper.agent_id)] == [3]

    await until(acknowledged)
    again = ("messages", "replay", helper.agent_id)
    first = await bxmesh(*again, "--from-entry", entries[0], "--limit", "2")
    assert "2 messages" in first.stdout
    assert f"--from-entry {entries[2]}" in first.stdout
    assert [(await soon(helper.got.get())).payload for _ in range(2)] == [0, 1]
    rest = (await bxmesh(*again, "--since", "10m", "--type", "note.2", "--json")).json
    assert rest == {"replayed": 1, "next_entry_id": ""}
    assert (await soon(helper.got.get())).payload == 2
    nobody = await bxmesh("messages", "replay", "nobody", "--since", "1h")
    assert (nobody.code, "AGENT_NOT_FOUND" in nobody.stderr) == (1, True)


async def test_dead_letters(bxmesh: Run, helper: Helper, mesh: AsyncMesh) -> None:
    async def dead() -> list[str]:
        return [d.dead_letter_id async for d in mesh.dead_letters(agent_id=helper.agent_id)]

    for number in range(3):
        await mesh.send(helper.agent_id, "poison", number)

        async def all_dead(count: int = number + 1) -> bool:
            return len(await dead()) == count

        # One after another, so that it is known which is the newest.
        await until(all_dead)
    ids = await dead()
    mine = ("--agent", helper.agent_id)
    table = (await bxmesh("dead-letters", "list", *mine)).stdout
    assert all(each in table for each in ids)
    assert "poison" in table
    limited = await bxmesh("dead-letters", "list", *mine, "--limit", "2", "--json")
    assert [each["dead_letter_id"] for each in limited.json] == ids[:2]
    assert (await bxmesh("dead-letters", "list", *mine, "--until", "1d", "--json")).json == []
    shown = await bxmesh("dead-letters", "show", ids[0])
    assert f"agent/{helper.agent_id}" in shown.stdout
    assert '"payload": 2' in shown.stdout
    assert "It cannot be read." in shown.stdout
    whole = (await bxmesh("dead-letters", "show", ids[0], "--json")).json
    assert (whole["kind"], whole["content"]["payload"]) == ("message", 2)
    missing = await bxmesh("dead-letters", "show", "agents:1-1")
    assert (missing.code, "no dead letter agents:1-1" in missing.stderr) == (1, True)

    replayed = await bxmesh("dead-letters", "replay", ids[0])
    assert (replayed.code, replayed.stdout) == (0, "1 put back\n")
    await until(all_dead)
    part = await bxmesh("dead-letters", "replay", *mine, "--limit", "1", "--json")
    assert (part.code, json.loads(part.stdout)) == (1, {"replayed": 1, "remaining": 2})
    await until(all_dead)

    refused = await bxmesh("dead-letters", "purge", *mine, stdin="n\n")
    assert (refused.code, "Delete 3 dead letters" in refused.stderr) == (1, True)
    assert (await bxmesh("dead-letters", "purge", *mine, stdin="")).code == 1
    assert len(await dead()) == 3
    ids = await dead()
    assert (await bxmesh("dead-letters", "purge", ids[0], stdin="y\n")).stdout.endswith(
        "1 deleted\n"
    )
    purged = (await bxmesh("dead-letters", "purge", *mine, "--yes", "--json")).json
    assert purged == {"purged": 2}
    for command in ("replay", "purge"):
        everything = await bxmesh("dead-letters", command)
        assert (everything.code, "Say which" in everything.stderr) == (2, True)
