"""Structure factors and maps through the mesh: those of the engine, files, refusals, commands."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import iotbx.mtz
import mrcfile
import numpy as np
import pytest
from click.testing import CliRunner

from bxmesh.client import AsyncMesh, Mesh, Model
from bxmesh.client.cli import main
from bxmesh.client.errors import BxmeshError
from bxmesh.geometry.v1 import calculations_pb2 as pb
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.geometry.engine import ModelInputs
from bxmesh.server.geometry.engine.maps import density_map
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.structure_factors import structure_factors
from tests.engine.crystals import anomalous_1yjp
from tests.engine.prepared import prepared_library
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.models import crystal as created
from tests.mesh.models import sites_of
from tests.mesh.raw import noisy


@pytest.fixture(scope="module")
def crystal() -> BuiltModel:
    """7n2l with its data, in this process."""
    return build(ModelInputs(wheel_bytes(PDB_7N2L), wheel_bytes(MTZ_7N2L)), prepared_library())


@pytest.fixture
async def model(mesh: AsyncMesh) -> Model:
    return await created(mesh)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_structure_factors(
    mesh: AsyncMesh, model: Model, crystal: BuiltModel, elsewhere: bool, tmp_path: Path
) -> None:
    sites = noisy(sites_of(model)) if elsewhere else None
    result = await mesh.structure_factors(model, sites, as_mtz=True)
    expected = structure_factors(crystal, sites)
    np.testing.assert_array_equal(result.miller_indices, expected.miller_indices)
    for kind, array in expected.values.items():
        np.testing.assert_array_equal(getattr(result, kind), array)
    assert result.k_overall == expected.k_overall
    assert result.k_mask == expected.k_mask
    assert result.xray is not None
    assert expected.xray is not None
    assert (result.xray.r_work, result.xray.r_free) == (
        expected.xray.r_work,
        expected.xray.r_free,
    )
    path = await mesh.bundles.download(result.mtz_bundle_id, tmp_path / "all.mtz")
    assert path.read_bytes() == expected.mtz()
    bundle = await mesh.bundles.get(result.mtz_bundle_id)
    assert bundle.kind == "structure_factors"
    assert model.model_id in bundle.derived_from


async def test_structure_factors_of_atoms_alone(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP))
    result = await mesh.structure_factors(model, d_min=2.0, algorithm="direct")
    assert result.f_calc is not None
    assert result.f_calc.dtype == np.complex128
    assert result.f_mask is result.f_model is result.xray is None
    assert result.mtz_bundle_id == ""


@pytest.mark.parametrize("kind", ["2mfo_dfc", "mfo_dfc"])
async def test_map(
    mesh: AsyncMesh, model: Model, crystal: BuiltModel, kind: Any, tmp_path: Path
) -> None:
    sites = noisy(sites_of(model))
    result = await mesh.map(model, kind, sites, resolution_factor=3)
    expected = density_map(crystal, kind, sites, resolution_factor=3)
    np.testing.assert_array_equal(result.values, expected.values)
    assert (result.mean, result.sigma) == (expected.mean, expected.sigma)
    path = await mesh.bundles.download(result.ccp4_bundle_id, tmp_path / "map.ccp4")
    assert path.read_bytes() == expected.ccp4()
    assert (await mesh.bundles.get(result.ccp4_bundle_id)).kind == "map"


async def test_anomalous_map(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(wheel_file(PDB_1YJP), anomalous_1yjp())
    result = await mesh.map(model, "anomalous")
    assert result.sigma > 0


async def test_map_as_a_job(mesh: AsyncMesh, model: Model) -> None:
    request = pb.ComputeMapRequest(model_id=model.model_id, kind=pb.MAP_KIND_MFO_DFC)
    job = await mesh.jobs.create(request)
    await mesh.jobs.wait(job.job_id)
    result = await mesh.jobs.result(job.job_id)
    direct = await mesh.map(model, "mfo_dfc")
    np.testing.assert_array_equal(result.tensors["map"], direct.values)


def test_without_asyncio(shared_mesh: EmbeddedMesh) -> None:
    with Mesh(shared_mesh.address, state_dir=shared_mesh.state_dir) as mesh:
        model = mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L))
        assert mesh.map(model, "2mfo_dfc").values.ndim == 3
        assert mesh.structure_factors(model, kinds=["f_calc"]).f_model is None


async def refused(call: Any) -> str:
    with pytest.raises(BxmeshError) as caught:
        await call
    assert len(caught.value.trace_id) == 32
    return caught.value.reason


async def test_what_is_refused(mesh: AsyncMesh, model: Model) -> None:
    alone = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
    text = wheel_bytes(PDB_1YJP).replace(b"CRYST1", b"REMARK")
    free = await mesh.create_model(text)
    factors, density = mesh.structure_factors, mesh.map
    assert await refused(factors(alone)) == "NO_D_MIN"
    assert await refused(factors(alone, d_min=1e-3)) == "TOO_MANY_REFLECTIONS"
    assert await refused(factors(alone, kinds=["f_model"], d_min=2)) == "NO_REFLECTIONS"
    assert await refused(factors(free, d_min=2)) == "NO_CRYSTAL_SYMMETRY"
    assert await refused(factors(model, d_min=2)) == "D_MIN_NOT_TAKEN"
    for d_min in (-1.0, math.nan):
        assert await refused(factors(alone, d_min=d_min)) == "INVALID_ARGUMENT"
    assert await refused(density(alone, "2mfo_dfc")) == "NO_REFLECTIONS"
    assert await refused(density(model, "anomalous")) == "NO_ANOMALOUS_PAIRS"
    for factor in (11.0, 1e300, math.nan, math.inf):
        call = density(model, "mfo_dfc", resolution_factor=factor)
        assert await refused(call) == "INVALID_ARGUMENT"
    assert (
        await refused(density(model, "mfo_dfc", resolution_factor=1.0))
        == "RESOLUTION_FACTOR_INVALID"
    )
    for call_at in (
        lambda sites: factors(model, sites),
        lambda sites: density(model, "mfo_dfc", sites),
    ):
        sites = sites_of(model).copy()
        assert await refused(call_at(sites[:-1])) == "COORDINATES_SHAPE"
        assert await refused(call_at(np.stack([sites, sites]))) == "ONE_SAMPLE"
        sites[0] = np.nan
        assert await refused(call_at(sites)) == "SAMPLE_NON_FINITE"


@pytest.fixture
def bxmesh(shared_mesh: EmbeddedMesh) -> Any:
    where = ("--address", shared_mesh.address, "--state-dir", str(shared_mesh.state_dir))

    async def run(*arguments: object) -> Any:
        words = [*map(str, arguments), *where]
        return await asyncio.to_thread(CliRunner().invoke, main, words)

    return run


PDB, DATA, PEPTIDE = (str(wheel_file(path)) for path in (PDB_7N2L, MTZ_7N2L, PDB_1YJP))


async def test_command_map(bxmesh: Any, tmp_path: Path) -> None:
    output = tmp_path / "difference.ccp4"
    words = ("map", PDB, "--reflections", DATA, "--kind", "mfo-dfc", "--output", output)
    result = await bxmesh(*words)
    assert result.exit_code == 0, result.output
    assert "24 × 45 × 144" in result.stdout
    with mrcfile.open(output) as file:
        assert file.data.shape == (144, 45, 24)
    report = json.loads((await bxmesh(*words, "--json")).stdout)
    assert report["grid"] == [24, 45, 144]
    result = await bxmesh("map", PDB, "--output", output)
    assert result.exit_code == 1
    assert "NO_REFLECTIONS" in result.stderr
    for wrong in (("--kind", "fofc"), ("--resolution-factor", "1"), ("--output", "no/where.ccp4")):
        assert (await bxmesh(*words, *wrong)).exit_code == 2


async def test_command_real_space(
    bxmesh: Any, mesh: AsyncMesh, model: Model, tmp_path: Path
) -> None:
    map_id = (await mesh.map(model, "2mfo_dfc")).ccp4_bundle_id
    density, output = tmp_path / "map.ccp4", tmp_path / "gradients.npz"
    await mesh.bundles.download(map_id, density)
    expected = await mesh.real_space_gradients(model, map_id)
    for source in (density, map_id):
        result = await bxmesh("real-space", PDB, "--map", source, "--output", output)
        assert result.exit_code == 0, result.output
        assert f"{expected.value:.6g}" in result.stdout
        with np.load(output) as arrays:
            np.testing.assert_array_equal(arrays["gradients"], expected.gradients)
            np.testing.assert_array_equal(arrays["density"], expected.density)
    words = ("real-space", PDB, "--map", density)
    report = json.loads((await bxmesh(*words, "--interpolation", "linear", "--json")).stdout)
    assert report["atoms"] == len(expected.density)
    assert report["value"] != expected.value
    assert report["value"] == pytest.approx(expected.value, rel=0.1)
    result = await bxmesh("real-space", PDB, "--map", PDB)
    assert result.exit_code == 1, result.output
    assert "map" in result.stderr
    for wrong in (("--interpolation", "cubic"), ("--map", "no.ccp4"), ("--output", "no/where")):
        assert (await bxmesh(*words, *wrong)).exit_code == 2


async def test_command_structure_factors(bxmesh: Any, tmp_path: Path) -> None:
    output = tmp_path / "factors.mtz"
    words = ("structure-factors", PDB, "--reflections", DATA, "--output", output)
    result = await bxmesh(*words)
    assert result.exit_code == 0, result.output
    assert "R-work" in result.stdout
    labels = iotbx.mtz.object(str(output)).column_labels()
    assert {"FOBS", "SIGFOBS", "R-free-flags", "FC", "PHIC", "FMODEL", "PHIFMODEL"} < set(labels)
    alone = ("structure-factors", PEPTIDE, "--output", output)
    report = json.loads((await bxmesh(*alone, "--d-min", "1.8", "--json")).stdout)
    assert report["reflections"] == 553
    assert report["r_work"] is None
    result = await bxmesh(*alone)
    assert result.exit_code == 1
    assert "NO_D_MIN" in result.stderr
