"""Minimize through the mesh: streamed, as a job that keeps its best, and by its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh, FailedPrecondition, InvalidInput, NotFound
from bxmesh.client.cli import main
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_file

UBIQUITIN = "iotbx/regression/secondary_structure/1ubf_cutted.pdb"
GEOMETRY = gradients_pb2.GradientOptions(target=gradients_pb2.TARGET_GEOMETRY)


async def test_steps_are_streamed_to_the_end(mesh: AsyncMesh, tmp_path: Path) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP))
    steps: list[Any] = []
    result = await mesh.minimize(
        model, target="geometry", max_evaluations=300, on_step=steps.append
    )
    assert result.reason in ("converged", "max_evaluations")
    assert result.engine == "fast"
    assert steps
    assert steps[0] == result.start
    assert result.best.value.geometry is not None
    assert result.start.value.geometry is not None
    assert result.best.value.geometry.energy < result.start.value.geometry.energy
    again = await mesh.gradients(model, result.sites, target="geometry")
    assert again.sample.geometry is not None
    assert again.sample.geometry.energy == pytest.approx(result.best.value.geometry.energy)
    path = await mesh.bundles.download(result.macromolecule_bundle_id, tmp_path / "best.pdb")
    other = await mesh.create_model(path, include_atoms=True)
    assert other.atoms is not None
    assert np.allclose(other.atoms.sites, result.sites, atol=0.0006)
    bundle = await mesh.bundles.get(result.coordinates_bundle_id)
    assert model.model_id in bundle.derived_from


async def test_a_crystal_is_refined(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), include_atoms=True)
    assert model.atoms is not None
    sites = model.atoms.sites + np.random.default_rng(1).normal(
        scale=0.05, size=model.atoms.sites.shape
    )
    result = await mesh.minimize(model, sites, max_evaluations=40, macro_cycles=2)
    before, after = result.start.value.xray, result.best.value.xray
    assert before is not None
    assert after is not None
    assert after.r_work < before.r_work
    assert result.best.macro_cycle == 2


async def test_a_cancelled_job_keeps_its_best(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(UBIQUITIN), include_atoms=True)
    assert model.atoms is not None
    request = pb.MinimizeRequest(
        model_id=model.model_id,
        options=GEOMETRY,
        max_evaluations=100_000,
        gradient_tolerance=1e-12,
    )
    job = await mesh.jobs.create(request)
    async for change in mesh.jobs.watch(job.job_id):
        if "evaluation" in change.step:
            assert 0 < change.fraction_done < 1
            break
    assert (await mesh.jobs.cancel(job.job_id)).state == "cancelled"
    result = await mesh.jobs.result(job.job_id)
    summary: Any = result.summary
    assert summary.reason == "cancelled"
    assert summary.best.value.geometry.energy < summary.start.value.geometry.energy
    assert result.tensors["sites"].shape == model.atoms.sites.shape
    ended = await mesh.jobs.get(job.job_id)
    assert ended.state == "cancelled"
    assert summary.macromolecule_bundle_id in ended.result_bundle_ids


async def test_bad_minimizations_are_refused(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    assert model.atoms is not None
    sites = model.atoms.sites
    with pytest.raises(InvalidInput, match="2 samples"):
        await mesh.minimize(model, np.stack([sites, sites]), target="geometry")
    with pytest.raises(InvalidInput):
        await mesh.minimize(model, np.full_like(sites, np.nan), target="geometry")
    with pytest.raises(InvalidInput):
        await mesh.minimize(model, sites[:5], target="geometry")
    with pytest.raises(FailedPrecondition, match="reflections"):
        await mesh.minimize(model, target="xray")
    for wrong in ({"max_evaluations": -1}, {"macro_cycles": 101}, {"gradient_tolerance": -1.0}):
        with pytest.raises(InvalidInput):
            await mesh.minimize(model, target="geometry", **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await mesh.minimize("sha256:" + "0" * 64, target="geometry")


def test_the_command(shared_mesh: EmbeddedMesh, tmp_path: Path) -> None:
    where = ["--address", shared_mesh.address, "--state-dir", str(shared_mesh.state_dir)]
    model = str(wheel_file(PDB_1YJP))

    def call(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, ["minimize", model, *arguments, *where])
        assert result.exit_code == code, result.output
        return result

    out = tmp_path / "best.pdb"
    told = call("--target", "geometry", "--max-evaluations", "50", "--output", str(out))
    assert "→" in told.stdout
    assert out.read_text().startswith(Path(model).read_text()[:100])
    plain = json.loads(call("--target", "geometry", "--max-evaluations", "3", "--json").stdout)
    assert plain["reason"] == "max_evaluations"
    assert plain["best"]["value"]["geometry"]["energy"] > 0
    call("--target", "xray", code=1)
    call("--max-evaluations", "0", code=2)
