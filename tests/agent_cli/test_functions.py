"""`bxmesh functions`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Run, start
from tests.sdk.agents import name as unique
from tests.sdk.agents import soon

DIVIDE = (
    "def main(n, text=''):\n    print('dividing', text)\n    return {'half': n / 2, 'ü': 1 // n}\n"
)
SPIN = (
    "import mesh\n\nasync def main():\n    await mesh.progress(1)\n    while True:\n        pass\n"
)


@pytest.fixture
def name() -> str:
    """A function's name that no other test has."""
    return unique("test.f").replace("-", "_")


@pytest.fixture
async def divide(bxmesh: Run, name: str) -> str:
    """A stored function."""
    stored = await bxmesh("functions", "create", "-", "--name", name, stdin=DIVIDE)
    assert stored.stdout == f"{name} 1.0.0 is latest\n", stored.stderr
    return name


async def test_a_function_is_stored_and_looked_at(bxmesh: Run, name: str, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(DIVIDE)
    (tmp_path / "takes.json").write_text(
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    )
    (tmp_path / "gives.json").write_text('{"type": "object"}')
    words = (
        tmp_path / "f.py", "--name", name, "--description", "Divides.", "--example", '{"n": 2}',
        "--input-schema", tmp_path / "takes.json", "--output-schema", tmp_path / "gives.json",
        "--import", "math", "--timeout", "5", "--memory", "32M", "--label", "for=tests", "--public",
    )  # fmt: skip
    checked = await bxmesh("functions", "check", *words)
    assert checked.stdout == "main can be stored, and does its example\n"
    created = await bxmesh("functions", "create", *words, "--version", "2.0.0", "--alias", "good")
    assert created.stdout == f"{name} 2.0.0 is good, latest\n"
    again = await bxmesh("functions", "create", *words)
    assert again.stdout == f"{name} 2.0.0 was there already, and is good, latest\n"
    shown = (await bxmesh("functions", "show", name)).stdout
    for fact in ("2.0.0", "good, latest", "Divides.", "32 MiB", "5 s", "for=tests", "all"):
        assert fact in shown
    assert '"required"' in shown
    assert shown.endswith(DIVIDE)
    assert (await bxmesh("functions", "show", name, "--code")).stdout == DIVIDE
    whole = (await bxmesh("functions", "show", name, "--version", "good", "--json")).json
    assert (whole["version"], whole["example"]) == ("2.0.0", {"n": 2})
    assert whole["limits"]["memory"] == 32 << 20
    (listed,) = (await bxmesh("functions", "list", "--label", "for=tests", "--json")).json
    assert listed["name"] == name
    assert name in (await bxmesh("functions", "list")).stdout


async def test_what_is_wrong_is_said_line_by_line(bxmesh: Run, name: str) -> None:
    code = "import os\nimport socket\n\ndef other():\n    pass\n"
    for command in ("check", "create"):
        refused = await bxmesh("functions", command, "-", "--name", name, stdin=code)
        assert (refused.code, refused.stdout) == (1, "")
        assert "line 1: os is not among the allowed imports" in refused.stderr
        assert "  function.code: line 2: socket is not among" in refused.stderr
        assert "  function.entry_point: the code defines no function main" in refused.stderr
        assert "--import" in refused.stderr
    missing = await bxmesh("functions", "show", name)
    assert (missing.code, "bxmesh functions list" in missing.stderr) == (1, True)


async def test_versions_and_aliases(bxmesh: Run, divide: str) -> None:
    await bxmesh("functions", "create", "-", "--name", divide, stdin="def main():\n    return 1\n")
    moved = await bxmesh("functions", "alias", divide, "stable", "1.0.0")
    assert moved.stdout == f"stable of {divide} means 1.0.0\n"
    found = (await bxmesh("functions", "versions", divide, "--json")).json
    assert [(one["version"], one["aliases"]) for one in found] == [
        ("1.0.1", ["latest"]),
        ("1.0.0", ["stable"]),
    ]
    ran = await bxmesh("functions", "run", divide, "n=1", "--version", "stable")
    assert ran.json == {"half": 0.5, "ü": 1}
    gone = await bxmesh("functions", "alias", divide, "stable")
    assert gone.stdout == f"stable of {divide} means 1.0.0 no longer\n"
    one = await bxmesh("functions", "delete", divide, "--version", "1.0.1")
    assert one.stdout == f"deleted {divide} 1.0.1\n"
    kept = await bxmesh("functions", "delete", divide, stdin="n\n")
    assert (kept.code, "with 1 version for good" in kept.stderr) == (1, True)
    assert (await bxmesh("functions", "delete", divide, "--yes")).code == 0
    assert (await bxmesh("functions", "versions", divide)).code == 1


async def test_a_function_runs(bxmesh: Run, divide: str, tmp_path: Path) -> None:
    run = ("functions", "run", divide)
    ran = await bxmesh(*run, "n=2", "text=two words")
    assert (ran.json, ran.stderr) == ({"half": 1, "ü": 0}, "dividing two words\n")
    (tmp_path / "input.json").write_text('{"n": 4, "text": "\\u001b[2J"}')
    ran = await bxmesh(*run, "--input", f"@{tmp_path / 'input.json'}", "n=3")
    assert (ran.json["half"], ran.stderr) == (1.5, "dividing \\x1b[2J\n")
    failed = await bxmesh(*run, "n=0")
    assert (failed.code, failed.stdout) == (1, "")
    assert "ZeroDivisionError" in failed.stderr
    assert "(line 3)" in failed.stderr
    assert "reason: FUNCTION_FAILED" in failed.stderr
    whole = await bxmesh(*run, "n=0", "--json")
    assert (whole.code, json.loads(whole.stdout)["error"]["reason"]) == (1, "FUNCTION_FAILED")
    assert (await bxmesh(*run)).code == 1
    executions = ("functions", "executions", divide)
    found = (await bxmesh(*executions, "--json")).json
    assert [one["state"] for one in found] == ["failed"] * 3 + ["completed"] * 2
    table = (await bxmesh(*executions, "--state", "completed", "--limit", "1")).stdout
    assert found[3]["execution_id"] in table
    assert '{"half": 1.5, "ü": 0}' in table
    shown = (await bxmesh("functions", "execution", found[3]["execution_id"])).stdout
    for words in ("completed", "dividing \\x1b[2J", '"half": 1.5', " s\n"):
        assert words in shown
    figures = (await bxmesh("functions", "stats", divide)).stdout
    assert "completed     2\n" in figures
    assert (await bxmesh("functions", "stats", divide, "--json")).json["executions"] == 5


async def test_durable_executions(bxmesh: Run, divide: str) -> None:
    run = ("functions", "run", divide, "--durable")
    assert (await bxmesh(*run, "n=2")).json == {"half": 1, "ü": 0}
    detached = await bxmesh(*run, "n=0", "--detach", "--attempts", "1")
    assert (detached.code, detached.stderr) == (0, "")
    found = await bxmesh("functions", "execution", detached.stdout.strip(), "--json")
    assert found.json["function_name"] == divide
    refused = await bxmesh("functions", "run", divide, "n=1", "--detach")
    assert (refused.code, "only durable" in refused.stderr) == (1, True)


@pytest.mark.parametrize("durable", [False, True])
async def test_an_interrupt(
    bxmesh: Run, shared_server: EmbeddedMesh, name: str, mesh: AsyncMesh, durable: bool
) -> None:
    await mesh.functions.create(name, SPIN, host_functions=["mesh.progress"])
    process = await start(
        shared_server, "functions", "run", name, *(["--durable"] if durable else [])
    )
    assert process.stderr is not None
    assert await soon(process.stderr.readline()) == b"progress 1\n"
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    assert process.returncode == 1
    assert b"Traceback" not in errors
    (execution,) = [one async for one in mesh.functions.executions(name)]
    assert (b"goes on" in errors) == durable
    if durable:
        cancelled = await bxmesh("functions", "cancel", execution.execution_id)
        assert cancelled.stdout == f"{execution.execution_id} cancelled\n"
    ended = await soon(mesh.functions.wait_for_execution(execution.execution_id))
    assert ended.state == "cancelled"


@pytest.mark.parametrize(
    "words",
    [
        ("create", "-"),
        ("create", "/no/such/file", "--name", "a"),
        ("create", "-", "--name", "a", "--memory", "much"),
        ("create", "-", "--name", "a", "--input-schema", "/no/such/file"),
        ("run",),
        ("run", "a", "no pair"),
        ("run", "a", "--input", "{"),
        ("run", "a", "b=1", "--input", "[1]"),
        ("run", "a", "--attempts", "0"),
        ("executions", "--state", "asleep"),
        ("cancel",),
    ],
)
async def test_what_makes_no_sense_is_refused(bxmesh: Run, words: tuple[str, ...]) -> None:
    ended = await bxmesh("functions", *words, stdin="")
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)
