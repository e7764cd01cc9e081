"""`bxmesh tasks`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Helper, Run, start
from tests.sdk.agents import soon


async def test_a_task_is_submitted_and_waited_for(
    bxmesh: Run, helper: Helper, tmp_path: Path
) -> None:
    mine = ("tasks", "submit", "--type", "sum", "--agent", helper.agent_id)
    done = await bxmesh(*mine, "[1, 2, 3]", "--wait")
    assert (done.code, json.loads(done.stdout)) == (0, 6.0)
    assert "completed" in done.stderr
    (tmp_path / "numbers.json").write_text("[4]")
    whole = (await bxmesh(*mine, f"@{tmp_path / 'numbers.json'}", "--wait", "--json")).json
    assert (whole["state"], whole["result"], whole["parameters"]) == ("completed", 4.0, [4])
    by_capability = await bxmesh("tasks", "submit", "--type", "sum", "-", "--wait", stdin="[5]")
    assert json.loads(by_capability.stdout) == 5.0


async def test_a_task_that_fails(bxmesh: Run, helper: Helper) -> None:
    failed = await bxmesh("tasks", "submit", "--type", "fail", "--agent", helper.agent_id, "--wait")
    assert failed.code == 1
    assert failed.stdout == ""
    assert "It does not add up." in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_tasks_are_listed_shown_watched_and_cancelled(
    bxmesh: Run, shared_server: EmbeddedMesh, helper: Helper
) -> None:
    submitted = await bxmesh(
        "tasks", "submit", "--type", "hang", "--agent", helper.agent_id,
        "--label", "colour=blue", "--description", "for a long time", "--timeout", "600", '{"x": 1}',
    )  # fmt: skip
    assert submitted.code == 0, submitted.stderr
    task_id = submitted.stdout.split()[0]
    assert await soon(helper.begun.get()) == task_id
    listed = ("tasks", "list", "--agent", helper.agent_id)
    table = (await bxmesh(*listed)).stdout
    assert task_id in table
    assert "hang" in table
    assert (await bxmesh(*listed, "--state", "completed", "--json")).json == []
    (found,) = (await bxmesh(*listed, "--label", "colour=blue", "--json")).json
    assert (found["task_id"], found["parameters"]) == (task_id, {"x": 1})
    shown = (await bxmesh("tasks", "show", task_id)).stdout
    for words in (task_id, "colour=blue", "for a long time", '"x": 1', helper.agent_id):
        assert words in shown
    watch = await start(shared_server, "tasks", "watch", task_id, "--json")
    assert watch.stdout is not None
    assert json.loads(await soon(watch.stdout.readline()))["state"] in ("assigned", "running")
    cancelled = await bxmesh("tasks", "cancel", task_id, "--reason", "changed my mind")
    assert cancelled.stdout == f"{task_id} cancelled\n"
    watched, _ = await soon(watch.communicate())
    assert watch.returncode == 1
    assert json.loads(watched.splitlines()[-1])["state"] == "cancelled"
    again = await bxmesh("tasks", "watch", task_id)
    assert (again.code, "changed my mind" in again.stdout) == (1, True)


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
async def test_a_task_that_there_is_not(bxmesh: Run, command: str) -> None:
    ended = await bxmesh("tasks", command, "nothing")
    assert (ended.code, "TASK_NOT_FOUND" in ended.stderr) == (1, True)


async def test_a_task_that_nobody_can_do(bxmesh: Run) -> None:
    refused = await bxmesh("tasks", "submit", "--type", "alchemy")
    assert (refused.code, "alchemy" in refused.stderr) == (1, True)
    assert "--wait-for-agent" in refused.stderr
    kept = await bxmesh("tasks", "submit", "--type", "alchemy", "--wait-for-agent", "--json")
    assert kept.json["state"] == "pending"
    assert (await bxmesh("tasks", "cancel", kept.json["task_id"])).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("submit",),
        ("submit", "--type", "sum", "{"),
        ("submit", "--type", "sum", "--label", "x"),
        ("submit", "--type", "sum", "--timeout", "0"),
        ("list", "--state", "asleep"),
        ("list", "--limit", "0"),
        ("cancel",),
    ],
)
async def test_what_makes_no_sense_is_refused(bxmesh: Run, words: tuple[str, ...]) -> None:
    ended = await bxmesh("tasks", *words)
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)


async def test_an_interrupt_leaves_the_task_to_go_on(
    bxmesh: Run, shared_server: EmbeddedMesh, helper: Helper, mesh: AsyncMesh
) -> None:
    process = await start(
        shared_server, "tasks", "submit", "--type", "hang", "--agent", helper.agent_id, "--wait"
    )
    assert process.stderr is not None
    task_id = await soon(helper.begun.get())

    async def is_running() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            if b"running" in line:
                return

    await soon(is_running())
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    assert process.returncode == 1
    assert f"{task_id} goes on".encode() in errors
    assert b"Traceback" not in errors
    assert not (await mesh.task(task_id)).done
    assert (await bxmesh("tasks", "cancel", task_id)).code == 0
