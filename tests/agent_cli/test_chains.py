"""`bxmesh chains`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.agent_cli.conftest import Run, start
from tests.sdk.agents import soon
from tests.sdk.test_chains import f

__all__ = ["f"]

GOOD = """\
steps:
  - {{step_id: one, function: {f}.add, inputs: {{a: input.n}}}}
  - {{step_id: two, function: {f}.echo, after: one, condition: input.n > 1}}
outputs: {{ü: steps.one.output.sum}}
"""
BAD = """\
steps:
  - {{step_id: bad, function: {f}.fail}}
  - {{step_id: next, function: {f}.echo, after: bad}}
"""
SLOW = "steps: [{{step_id: slow, function: {f}.spin}}]\n"


@pytest.fixture
def good(tmp_path: Path, f: str) -> Path:
    return written(tmp_path, GOOD, f)


def written(folder: Path, text: str, f: str) -> Path:
    file = folder / "chain.yaml"
    file.write_text(text.format(f=f))
    return file


async def test_a_chain_is_run_and_looked_at(bxmesh: Run, good: Path, tmp_path: Path) -> None:
    ran = await bxmesh("chains", "run", good, "--input", '{"n": 1}')
    assert ran.json == {"ü": 2}
    assert "ü" in ran.stdout
    assert ran.stderr.splitlines()[-1] == "2 of 2 steps"
    whole = (await bxmesh("chains", "run", good, "--input", '{"n": 2}', "--json")).json
    assert (whole["state"], whole["output"], whole["input"]) == ("completed", {"ü": 3}, {"n": 2})
    assert [step["state"] for step in whole["steps"]] == ["completed", "completed"]
    first, second = (await bxmesh("chains", "list", "--limit", "2", "--json")).json
    assert first["run_id"] == whole["run_id"]
    assert second["chain"]["steps"][0]["step_id"] == "one"
    table = (await bxmesh("chains", "list", "--state", "completed")).stdout
    assert whole["run_id"] in table
    assert "2 steps" in table
    shown = (await bxmesh("chains", "show", second["run_id"])).stdout
    for words in ("completed in", "skipped", '{"sum": 2}', '{"n": 1}', "admin", '"ü": 2'):
        assert words in shown
    again = (await bxmesh("chains", "show", whole["run_id"], "--json")).json
    assert again == whole
    watched = await bxmesh("chains", "watch", whole["run_id"])
    assert (watched.code, "the run completed" in watched.stdout) == (0, True)


async def test_a_chain_that_fails(bxmesh: Run, f: str, tmp_path: Path) -> None:
    failed = await bxmesh("chains", "run", written(tmp_path, BAD, f))
    assert (failed.code, failed.stdout) == (1, "")
    assert "The step bad failed" in failed.stderr
    assert "reason: FUNCTION_FAILED" in failed.stderr
    watched = await bxmesh("chains", "start", written(tmp_path, BAD, f), "--watch")
    assert watched.code == 1
    lines = watched.stdout.splitlines()
    assert any("bad failed in" in line and "as asked" in line for line in lines)
    assert any("next skipped" in line for line in lines)
    assert "the run failed: The step bad failed" in lines[-1]
    shown = (await bxmesh("chains", "show", lines[0])).stdout
    assert "FUNCTION_FAILED" in shown


async def test_runs_are_started_watched_and_cancelled(bxmesh: Run, f: str, tmp_path: Path) -> None:
    slow = written(tmp_path, SLOW, f)
    run_id = (await bxmesh("chains", "start", slow)).stdout.strip()
    started = (await bxmesh("chains", "start", slow, "--json")).json
    assert (started["state"], started["steps"][0]["step_id"]) == ("pending", "slow")
    cancelled = await bxmesh("chains", "cancel", run_id, started["run_id"])
    assert cancelled.stdout == f"{run_id} cancelled\n{started['run_id']} cancelled\n"
    watched = await bxmesh("chains", "watch", run_id, "--json")
    assert watched.code == 1
    assert json.loads(watched.stdout.splitlines()[-1])["run"]["state"] == "cancelled"


async def test_pictures(bxmesh: Run, good: Path, tmp_path: Path) -> None:
    ran = await bxmesh("chains", "run", good, "--input", '{"n": 1}', "--json")
    picture = ("chains", "picture", ran.json["run_id"])
    drawn = await bxmesh(*picture)
    ElementTree.fromstring(drawn.stdout)
    for words in ("one", "completed", "skipped", " s"):
        assert words in drawn.stdout
    assert (await bxmesh(*picture, "--format", "mermaid")).stdout.startswith("flowchart TD\n")
    for name, beginning in (("run.svg", "<svg"), ("run.mmd", "flowchart")):
        assert (await bxmesh(*picture, "-o", tmp_path / name)).stdout == ""
        assert (tmp_path / name).read_text().startswith(beginning)


async def test_files_are_checked(bxmesh: Run, f: str, good: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from bxmesh.client.cli import main

    def check(text: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["chains", "check", str(written(tmp_path, text, f))])
        return result.exit_code, result.output

    assert check(GOOD) == (0, "2 steps, in an order and with expressions that can be\n")
    code, output = check(GOOD.replace("input.n > 1", "input.n >"))
    assert (code, "chain.steps[1].condition" in output) == (1, True)
    code, output = check(GOOD.replace("after: one", "after: two"))
    assert (code, "CHAIN_CYCLIC" in output) == (1, True)
    code, output = check("steps: [{{step: one}}]")
    assert (code, "chain.yaml has no chain" in output) == (1, True)
    refused = await bxmesh("chains", "start", written(tmp_path, GOOD.replace(".add", ".none"), f))
    assert (refused.code, "TOOL_UNKNOWN" in refused.stderr) == (1, True)
    refused = await bxmesh("chains", "start", "--definition", "nothing")
    assert (refused.code, "nothing" in refused.stderr) == (1, True)


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "picture"])
async def test_a_run_that_there_is_not(bxmesh: Run, command: str) -> None:
    ended = await bxmesh("chains", command, "nothing")
    assert (ended.code, "RUN_NOT_FOUND" in ended.stderr) == (1, True)
    assert "bxmesh chains list" in ended.stderr


async def test_an_interrupt_leaves_the_run_to_go_on(
    bxmesh: Run, shared_server: EmbeddedMesh, mesh: AsyncMesh, f: str, tmp_path: Path
) -> None:
    process = await start(shared_server, "chains", "run", written(tmp_path, SLOW, f))
    assert process.stderr is not None
    while b"at slow" not in await soon(process.stderr.readline()):
        pass
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate())
    assert process.returncode == 1
    assert b"Traceback" not in errors
    run_id = errors.split()[0].decode()
    assert f"{run_id} goes on".encode() in errors
    assert not (await mesh.chains.get(run_id)).done
    assert (await bxmesh("chains", "cancel", run_id)).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("start",),
        ("run", "/no/such/file"),
        ("run", "--definition", "a", "--input", "{"),
        ("list", "--state", "asleep"),
        ("list", "--limit", "0"),
        ("cancel",),
        ("picture", "a", "--format", "png"),
    ],
)
async def test_what_makes_no_sense_is_refused(bxmesh: Run, words: tuple[str, ...]) -> None:
    ended = await bxmesh("chains", *words)
    assert (ended.code, "Traceback" in ended.stderr) == (2, False)
