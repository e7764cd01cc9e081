"""`bxmesh definitions` and `bxmesh host`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Run, start
from tests.host.worlds import live
from tests.sdk.agents import name as unique
from tests.sdk.agents import soon

ECHO = "def main(**fields):\n    return {'said': fields}\n"


@pytest.fixture
def name() -> str:
    """A definition's name that no other test has."""
    return unique("def")


@pytest.fixture
async def echo(bxmesh: Run) -> str:
    """A stored function."""
    await bxmesh("functions", "create", "-", "--name", "test.cli_echo", stdin=ECHO)
    return "test.cli_echo"


def yaml(name: str, function: str) -> str:
    return f"""
definition_id: {name}
displayName: Echoes
description: Says what it hears.
input_schema: {{type: object, maxProperties: 5}}
rules:
  - message_type: say
    call: {{function: {function}}}
    reply_type: said
    result_mapping: {{said: heard}}
limits: {{timeout: 20, max_concurrent_tasks: 3}}
labels: {{for: tests}}
"""


async def test_a_definition_is_written_and_looked_at(
    bxmesh: Run, name: str, echo: str, tmp_path: Path
) -> None:
    (tmp_path / "d.yaml").write_text(yaml(name, echo))
    created = await bxmesh("definitions", "create", tmp_path / "d.yaml")
    assert created.stdout == f"{name} 1 is draft\n", created.stderr
    shown = (await bxmesh("definitions", "show", name)).stdout
    for fact in ("Echoes", "Says what it hears.", "draft", "rules", "20 s", "for=tests"):
        assert fact in shown
    assert f"say: {echo} → said" in shown
    whole = (await bxmesh("definitions", "show", name, "--json")).json
    assert (whole["version"], whole["limits"]["max_concurrent_tasks"]) == (1, 3)
    (tmp_path / "change.json").write_text(f'{{"definitionId": "{name}", "replicas": 2}}')
    changed = await bxmesh("definitions", "update", tmp_path / "change.json", "--activate")
    assert changed.stdout == f"{name} 2 is active\n", changed.stderr
    printed = (await bxmesh("definitions", "show", name, "--file")).stdout
    assert "replicas: 2\n" in printed
    again = await bxmesh("definitions", "update", "-", stdin=printed)
    assert again.stdout == f"{name} 2 is active\n", again.stderr
    versions = (await bxmesh("definitions", "versions", name, "--json")).json
    assert [(one["version"], one["replicas"]) for one in versions] == [(3, 2), (2, 2), (1, 1)]
    assert versions[0]["rules"] == versions[2]["rules"]
    back = await bxmesh("definitions", "activate", name, "--version", "1")
    assert back.stdout == f"{name} 1 is active\n"
    listed = await bxmesh("definitions", "list", "--state", "active", "--label", "for=tests")
    assert re.search(rf"{name} +3, 1 is active +active +rules", listed.stdout)
    refused = await bxmesh("definitions", "delete", name, "--yes")
    assert (refused.code, "Drain it first" in refused.stderr) == (1, True)
    assert (await bxmesh("definitions", "drain", name)).stdout == f"{name} is draining\n"
    assert (await bxmesh("definitions", "stop", name)).stdout == f"{name} is inactive\n"
    kept = await bxmesh("definitions", "delete", name, stdin="n\n")
    assert (kept.code, "with 3 versions for good" in kept.stderr) == (1, True)
    assert (await bxmesh("definitions", "delete", name, "--yes")).stdout == f"deleted {name}\n"
    missing = await bxmesh("definitions", "show", name)
    assert (missing.code, "bxmesh definitions list" in missing.stderr) == (1, True)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[]", "names and values are missing"),
        ("a: b: c", "has no definition"),
        ("stairs: 1", "definition.stairs"),
        ("definition_id: x\nreplicas: some", "definition.replicas"),
        ("definition_id: x\nlimits: {timeout: soon}", "definition.limits"),
        ("definition_id: x\ntools: [{function: test.nothing}]", "definition.tools[0].function"),
        ("definition_id: a b", "definition.definition_id"),
        ("definition_id: x\nmodel: {model: gpt}", "definition.model.model"),
    ],
)
async def test_what_is_wrong_is_said_by_field(bxmesh: Run, text: str, field: str) -> None:
    refused = await bxmesh("definitions", "create", "-", stdin=text)
    assert (refused.code, refused.stdout) == (1, "")
    assert field in refused.stderr


async def test_a_host_runs_until_it_is_interrupted(
    bxmesh: Run, shared_server: EmbeddedMesh, mesh: AsyncMesh, name: str, echo: str
) -> None:
    await bxmesh("definitions", "create", "-", "--activate", stdin=yaml(name, echo))
    host = await start(
        shared_server, "host", "--name", "cli-host", "--only", name, "--lease", "2", "--stats"
    )
    assert (await live(mesh, name)).metadata["host"] == "cli-host"
    reply = await mesh.request(name, "say", {"word": "hello"})
    assert (reply.type, reply.payload) == ("said", {"heard": {"word": "hello"}})
    host.send_signal(signal.SIGUSR1)
    assert host.stdout is not None
    header = (await soon(host.stdout.readline())).split()
    assert header[:4] == [b"agent", b"version", b"messages", b"tasks"]
    row = (await soon(host.stdout.readline())).split()
    assert row[:3] == [name.encode(), b"1", b"1"]
    host.send_signal(signal.SIGTERM)
    stdout, stderr = await soon(host.communicate())
    assert (host.returncode, name in stdout.decode()) == (0, True)
    assert f"{name} is active" in stderr.decode()
    assert name not in {agent.agent_id for agent in await mesh.agents()}
    await bxmesh("definitions", "stop", name)


async def test_another_host_takes_over_from_one_that_is_killed(
    bxmesh: Run, shared_server: EmbeddedMesh, mesh: AsyncMesh, name: str, echo: str
) -> None:
    await bxmesh("definitions", "create", "-", "--activate", stdin=yaml(name, echo))
    words = ("--only", name, "--lease", "2")
    first = await start(shared_server, "host", "--name", "first", *words)
    await live(mesh, name, host="first")
    second = await start(shared_server, "host", "--name", "second", *words)
    assert second.stderr is not None
    while f"{name} is active".encode() not in await soon(second.stderr.readline()):
        pass
    await asyncio.sleep(0.3)
    assert (await mesh.agent(name)).metadata["host"] == "first"
    os.kill(first.pid, signal.SIGKILL)
    await first.wait()
    await live(mesh, name, host="second")
    assert (await mesh.request(name, "say", {"a": 1})).payload == {"heard": {"a": 1}}
    second.send_signal(signal.SIGTERM)
    await soon(second.communicate())
    assert second.returncode == 0
    await bxmesh("definitions", "stop", name)
