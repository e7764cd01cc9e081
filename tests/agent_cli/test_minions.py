"""`bxmesh agents minions`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from bxmesh.client import AsyncMesh, Minion, RetryPolicy, Supervisor, TaskFailed
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Run, start
from tests.mesh.test_cli import BXMESH, INTERRUPTIBLE
from tests.processes import until
from tests.sdk.agents import name, soon
from tests.sdk.conftest import client


async def divide(number: float) -> float:
    return 1 / number


@pytest.fixture
async def minion(shared_server: EmbeddedMesh) -> AsyncIterator[Minion]:
    """A minion that has done a task, and failed at another."""
    async with client(shared_server) as mesh:
        minion = Minion(name("minion"), {"minions.divide": divide}, concurrency=4)
        async with minion.running(mesh):
            for number in (1, 0):
                work = await Supervisor(mesh).assign(
                    "minions.divide", {"number": number}, retry=RetryPolicy(max_attempts=1)
                )
                try:
                    await soon(work)
                except TaskFailed:
                    minion.metadata["failed_task"] = work.id
            yield minion


async def told(mesh: AsyncMesh, minion: Minion) -> None:
    async def both() -> bool:
        state = (await mesh.state(minion.agent_id)).value
        return (state["done"], state["failed"], state["status"]) == (1, 1, "idle")

    await until(both)


async def test_minions_are_listed(bxmesh: Run, minion: Minion, mesh: AsyncMesh) -> None:
    await told(mesh, minion)
    table = (await bxmesh("agents", "minions", "--capability", "minions.divide")).stdout
    header, row = table.splitlines()
    assert header.split() == [
        "minion", "status", "load", "tasks", "done", "failed", "cancelled", "last", "error",
    ]  # fmt: skip
    assert row.split()[:8] == [
        minion.agent_id, "idle", "0%", "0/4", "1", "1", "0", "ZERO_DIVISION_ERROR",
    ]  # fmt: skip
    assert f"in {minion.metadata['failed_task']} (" in row
    (found,) = (await bxmesh("agents", "minions", "--json")).json
    assert found["agent"]["agent_id"] == minion.agent_id
    assert found["state"]["errors"][0]["reason"] == "ZERO_DIVISION_ERROR"
    assert (await bxmesh("agents", "minions", "--type", "no.such", "--json")).json == []


@pytest.mark.parametrize("how", ["--json", ""])
async def test_minions_are_watched_until_interrupted(
    shared_server: EmbeddedMesh, minion: Minion, how: str
) -> None:
    process = await start(shared_server, "agents", "minions", "--watch", *how.split())
    assert process.stdout is not None
    line = (await soon(process.stdout.readline())).decode()
    assert minion.agent_id in line
    if how:
        assert json.loads(line)["kind"] == "joined"
    else:
        assert "joined" in line
        assert "0/4" in line
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    assert process.returncode == 1
    assert b"Traceback" not in errors


async def test_a_terminal_shows_them_live(
    shared_server: EmbeddedMesh, minion: Minion, mesh: AsyncMesh
) -> None:
    await told(mesh, minion)
    ours, theirs = os.openpty()
    words = [BXMESH, "agents", "minions", "--watch", "--state-dir", shared_server.state_dir]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        *map(str, words),
        stdin=theirs,
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    seen = b""
    async with asyncio.timeout(30):
        while b"ZERO_DIVISION_ERROR" not in seen:
            seen += await asyncio.to_thread(os.read, ours, 4096)
    assert minion.agent_id.encode() in seen
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    os.close(ours)
    assert process.returncode == 1
    assert b"Traceback" not in errors
