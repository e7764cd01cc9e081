"""Batches over a manifest: each line once, resumed, and told when it fails; and their command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh, InvalidInput
from bxmesh.client.batches import BatchItem, Outcome, read_manifest
from bxmesh.client.cli import main
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import PDB_1YJP, wheel_file

GEOMETRY = {"options": {"target": "TARGET_GEOMETRY"}}


def manifest(*lines: dict[str, Any]) -> list[BatchItem]:
    return read_manifest([json.dumps(line) for line in lines], "gradients")


async def run(mesh: AsyncMesh, items: list[BatchItem], results: Path) -> list[Outcome]:
    return [outcome async for outcome in mesh.batch(items, results, most_open=4)]


def test_a_manifest_is_read_and_grouped_by_model() -> None:
    items = manifest(
        {"model": "b.pdb", "name": "1"},
        {"model": "a.pdb", "kind": "validation"},
        {"model": "b.pdb", "name": "2", "restraints": ["x.cif"]},
        {"model": "b.pdb", "name": "3"},
    )
    assert [item.model for item in items] == ["a.pdb", "b.pdb", "b.pdb", "b.pdb"]
    assert [item.name for item in items[1:]] == ["2", "1", "3"]
    assert len({item.key for item in items}) == 4
    assert read_manifest(["", "\n"]) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 1"),
        ("[1]", "line 1"),
        ("{}", "line 1"),
        ('{"model": 7, "kind": "gradients"}', "no model"),
        ('{"model": "a", "kind": "magic"}', "kind"),
        ('{"model": "a", "kind": "gradients", "colour": 1}', "line 1"),
        ('{"model": "a", "kind": "gradients", "options": {"colour": 1}}', "colour"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_what_is_no_item_is_refused(line: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_manifest([line])


async def test_a_batch_is_done_once_and_resumed(mesh: AsyncMesh, tmp_path: Path) -> None:
    model = str(wheel_file(PDB_1YJP))
    lines = [{"model": model, "name": str(number), "options": GEOMETRY} for number in range(6)]
    results = tmp_path / "results.jsonl"
    first = await run(mesh, manifest(*lines[:4]), results)
    assert {outcome.state for outcome in first} == {"succeeded"}
    assert len({outcome.job.job_id for outcome in first if outcome.job}) == 4
    # As if it had been killed while it wrote, and before it saw an end.
    text = results.read_text().splitlines()
    begun = [line for line in text if "state" not in json.loads(line)]
    ended = [line for line in text if "state" in json.loads(line)]
    results.write_text("\n".join([*begun, *ended[:2], '{"key": "half']))
    results.write_text(results.read_text() + "\n")
    again = await run(mesh, manifest(*lines), results)
    assert len(again) == 6
    assert {outcome.state for outcome in again} == {"succeeded"}
    jobs = {outcome.item.name: outcome.job for outcome in again}
    assert sum(job is None for job in jobs.values()) == 2
    known = {each.item.name: each.job.job_id for each in first if each.job}
    for name, job in jobs.items():
        if job is not None and name in known:
            assert job.job_id == known[name]


async def test_failures_are_told_and_the_others_done(mesh: AsyncMesh, tmp_path: Path) -> None:
    (tmp_path / "bad.pdb").write_text("nonsense\n")
    good = str(wheel_file(PDB_1YJP))
    outcomes = await run(
        mesh,
        manifest(
            {"model": good, "options": GEOMETRY},
            {"model": str(tmp_path / "bad.pdb")},
            {"model": str(tmp_path / "none.pdb")},
            {"model": good, "options": {"options": {"target": "TARGET_XRAY"}}, "name": "no data"},
        ),
        tmp_path / "results.jsonl",
    )
    states = {outcome.item.name or Path(outcome.item.model).name: outcome for outcome in outcomes}
    assert states["1yjp.pdb"].state == "succeeded"
    for name in ("bad.pdb", "none.pdb", "no data"):
        assert states[name].state == "failed"
        assert states[name].error


def test_the_commands(shared_mesh: EmbeddedMesh, tmp_path: Path) -> None:
    where = ["--address", shared_mesh.address, "--state-dir", str(shared_mesh.state_dir)]

    def call(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, ["jobs", *arguments, *where])
        assert result.exit_code == code, result.output
        return result

    model = str(wheel_file(PDB_1YJP))
    options = json.dumps(GEOMETRY)
    done = call("submit", "gradients", model, "--options", options, "--wait", "--label", "a=b")
    job_id = done.stdout.strip()
    assert "succeeded" in call("show", job_id).stdout
    assert "a=b" in call("show", job_id).stdout
    assert job_id in call("list", "--state", "succeeded").stdout
    assert json.loads(call("show", job_id, "--json").stdout)["state"] == "JOB_STATE_SUCCEEDED"
    call("watch", job_id)
    call("cancel", job_id)
    call("download", job_id, "--output", str(tmp_path / "out"))
    with np.load(tmp_path / "out" / "tensors.npz") as arrays:
        assert arrays["geometry_sites"].shape[-1] == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["samples"]
    failed = call(
        *("submit", "gradients", model, "--wait"),
        *("--options", '{"options": {"target": "TARGET_XRAY"}}'),
        code=1,
    )
    assert "failed" in failed.stderr
    call("show", "unknown", code=1)
    (tmp_path / "manifest.jsonl").write_text(
        "\n".join(json.dumps({"model": model, "name": f"n{i}", "options": GEOMETRY}) for i in "12")
    )
    for _ in range(2):
        told = call(
            *("batch", str(tmp_path / "manifest.jsonl"), "--kind", "gradients"),
            *("--results", str(tmp_path / "results.jsonl")),
        )
        assert "2/2 " in told.stderr
