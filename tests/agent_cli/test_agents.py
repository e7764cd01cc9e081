"""`bxmesh agents` and `bxmesh streams`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Helper, Run, start
from tests.sdk.agents import name, soon
from tests.sdk.conftest import client


async def test_agents_are_listed(bxmesh: Run, helper: Helper) -> None:
    table = await bxmesh("agents", "list")
    assert table.code == 0
    assert table.stdout.split("\n")[0].split() == [
        "agent", "type", "status", "load", "tasks", "capabilities",
    ]  # fmt: skip
    assert helper.agent_id in table.stdout
    found = (await bxmesh("agents", "list", "--capability", "sum", "--json")).json
    assert helper.agent_id in [each["agent_id"] for each in found]
    assert (await bxmesh("agents", "list", "--type", "no.such.type", "--json")).json == []


async def test_an_agent_is_shown(bxmesh: Run, helper: Helper, mesh: AsyncMesh) -> None:
    await mesh.update_state(helper.agent_id, {"cell": {"a": 10}})
    shown = (await bxmesh("agents", "show", helper.agent_id)).stdout
    for words in (
        helper.agent_id,
        "active",
        "capability    sum",
        'cell: {"a": 10}',
        "connections   1",
    ):
        assert words in shown
    whole = (await bxmesh("agents", "show", helper.agent_id, "--json")).json
    assert whole["agent"]["agent_id"] == helper.agent_id
    assert whole["state"]["value"] == {"cell": {"a": 10}}
    assert whole["queue"]["queue"] == f"agent/{helper.agent_id}"


async def test_an_agent_that_is_not_there(bxmesh: Run) -> None:
    ended = await bxmesh("agents", "show", "nobody")
    assert ended.code == 1
    assert ended.stdout == ""
    assert "AGENT_NOT_FOUND" in ended.stderr
    assert "bxmesh agents list" in ended.stderr
    assert "trace:" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("how", ["--json", ""])
async def test_agents_are_watched_until_interrupted(shared_server: EmbeddedMesh, how: str) -> None:
    process = await start(shared_server, "agents", "watch", *how.split())
    assert process.stdout is not None
    agent_id = name("helper")

    async def event(kind: str) -> bytes:
        assert process.stdout is not None
        async for line in process.stdout:
            if agent_id.encode() in line and kind.encode() in line:
                return line
        raise AssertionError("it has ended")

    async with client(shared_server) as mesh, Helper(agent_id).running(mesh):
        line = await soon(event("joined"))
    left = await soon(event("left"))
    if how:
        assert json.loads(line)["agent"]["agent_id"] == agent_id
        assert json.loads(left)["leave_reason"] == "deregistered"
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    assert process.returncode == 1
    assert b"Traceback" not in errors


async def test_streams(bxmesh: Run, helper: Helper, mesh: AsyncMesh) -> None:
    await mesh.send(helper.agent_id, "note", 1)
    await soon(helper.got.get())
    held = name("absent")
    await mesh.send(held, "note", 1, hold=True, priority="high")
    table = (await bxmesh("streams", "info")).stdout
    assert f"agent/{helper.agent_id}" in table
    assert "capability/geometry" in table
    (one,) = (await bxmesh("streams", "info", "--agent", held, "--json")).json
    assert one["waiting"] == {"critical": 0, "high": 1, "low": 0, "medium": 0}
    assert (await bxmesh("streams", "info", "--capability", "geometry.gradients")).code == 0
    both = await bxmesh("streams", "info", "--capability", "geometry", "--agent", held)
    assert both.code == 2
    nowhere = await bxmesh("streams", "info", "--capability", "alchemy")
    assert (nowhere.code, "QUEUE_NOT_FOUND" in nowhere.stderr) == (1, True)


async def test_without_a_mesh(bxmesh: Run, short_dir: Path) -> None:
    for words in (
        ("agents", "list"),
        ("tasks", "list"),
        ("streams", "info"),
        ("dead-letters", "list"),
    ):
        ended = await bxmesh(*words, "--address", f"unix:{short_dir}/nothing.sock")
        assert ended.code == 1
        assert "bxmesh serve" in ended.stderr
        assert "Traceback" not in ended.stderr
