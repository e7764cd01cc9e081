"""The main job through the whole mesh: equal to cctbx in this process, whatever the way in."""

from __future__ import annotations

import asyncio
import gzip
import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bxmesh.client import AsyncMesh, Progress
from bxmesh.client.errors import FailedPrecondition, InvalidInput
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.tensors import to_message
from tests.engine.plain import PlainGeometry, labels
from tests.engine.prepared import prepared_library
from tests.engine.test_macromolecule import ETHANOL
from tests.engine.test_order import shuffled
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.models import Table, created, crystal, same, sites_of
from tests.mesh.raw import noisy, raw
from tests.processes import until
from tests.restraints.plain import crystal_with_symmetry_bond

AF = "mmtbx/regression/pdbs/AF_json_v3.pdb"
MODELS = {
    "protein, 66 atoms": PDB_1YJP,
    "protein, 2264 atoms": "iotbx/regression/secondary_structure/1ubf_cutted.pdb",
    "protein, 2641 atoms": AF,
    "protein, 5494 atoms": "iotbx/regression/secondary_structure/4a7h_chainC.pdb",
    "protein, 5558 atoms": "mmtbx/regression/pdbs/pae.pdb",
    "protein with hydrogens": PDB_7N2L,
    "DNA and RNA": "iotbx/pdb/remediation/tst/dna-rna-test.pdb",
    "protein with DNA": "iotbx/pdb/remediation/tst/protein-dna-test.pdb",
    "FeS": "mmtbx/regression/pdbs/Fe_1brf_snip_reduced.pdb",
    "alternative locations": "mmtbx/geometry/tests/1ahq_trunc.pdb",
}
GEOMETRY = {"target": "geometry"}


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """What cctbx in this process takes restraints from."""
    prepared_library()


@pytest.mark.parametrize("name", MODELS)
async def test_geometry_equals_cctbx(mesh: AsyncMesh, name: str) -> None:
    model = await created(mesh, MODELS[name])
    plain = PlainGeometry(MODELS[name], Table(model))  # type: ignore[arg-type]
    for sites in (sites_of(model), noisy(sites_of(model))):
        energies, expected = plain.evaluate(sites)
        for engine in ("cctbx", "fast"):
            result = await mesh.gradients(model, sites, engine=engine, **GEOMETRY)
            assert result.engine == engine
            assert same(result.geometry_sites, expected)
            assert result.energy == pytest.approx(energies.target, rel=1e-9)
            norm = pytest.approx(np.linalg.norm(expected), rel=1e-9)
            assert result.geometry.gradient_norm == norm
            assert {"bond", "angle", "nonbonded"} <= set(result.geometry.terms)
            for term, value in result.geometry.terms.items():
                # Pairs are those that the engine looked at.
                if term != "nonbonded" or engine == "cctbx":
                    assert value.count == getattr(energies, f"n_{term}_proxies")
                sum_ = getattr(energies, f"{term}_residual_sum")
                assert value.energy == pytest.approx(sum_, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_batch_equals_single_calls(mesh: AsyncMesh, dtype: str) -> None:
    model = await created(mesh, PDB_1YJP)
    batch = noisy(sites_of(model), 50).astype(dtype)
    result = await mesh.gradients(model, batch, **GEOMETRY)
    assert result.geometry_sites.shape == batch.shape
    assert result.geometry_sites.dtype == dtype
    assert [sample.sample for sample in result.samples] == list(range(50))
    for place in (0, 17, 49):
        single = await mesh.gradients(model, batch[place], **GEOMETRY)
        assert single.geometry_sites.shape == batch.shape[1:]
        assert same(single.geometry_sites, result.geometry_sites[place], 1e-12)
        assert result.samples[place].geometry is not None
        assert single.energy == pytest.approx(result.samples[place].geometry.energy, rel=1e-12)


async def test_few_atoms_and_many_samples(mesh: AsyncMesh) -> None:
    residue = b"\n".join(wheel_bytes(PDB_1YJP).split(b"\nATOM")[0:1])
    lines = [line for line in wheel_bytes(PDB_1YJP).split(b"\n") if line.startswith(b"ATOM")]
    model = await mesh.create_model(residue + b"\n" + b"\n".join(lines[:4]), include_atoms=True)
    batch = noisy(sites_of(model), 600)
    result = await mesh.gradients(model, batch, **GEOMETRY)
    assert result.geometry_sites.shape == batch.shape
    assert [sample.sample for sample in result.samples] == list(range(600))
    for place in (0, 255, 256, 599):
        single = await mesh.gradients(model, batch[place], **GEOMETRY)
        assert same(single.geometry_sites, result.geometry_sites[place], 1e-12)


async def test_large_batch_over_several_workers(mesh: AsyncMesh) -> None:
    async def all_there() -> bool:
        return len(await mesh.agents()) == 2

    await until(all_there)
    model = await created(mesh, AF)
    batch = noisy(sites_of(model), 80)
    assert batch.nbytes > 4 * 1024 * 1024
    result = await mesh.gradients(model, batch, **GEOMETRY)
    assert len(result.worker_ids) == 2
    assert len(result.bundle_ids) > 2
    assert [sample.sample for sample in result.samples] == list(range(80))
    norms = np.linalg.norm(result.geometry_sites, axis=(1, 2))
    told = [sample.geometry.gradient_norm for sample in result.samples if sample.geometry]
    np.testing.assert_allclose(norms, told, rtol=1e-9)
    for place in (0, 33, 79):
        single = await mesh.gradients(model, batch[place], **GEOMETRY)
        assert same(result.geometry_sites[place], single.geometry_sites)


async def test_batch_of_one_stays_a_batch(mesh: AsyncMesh) -> None:
    model = await created(mesh, PDB_1YJP)
    sites = noisy(sites_of(model))
    one = await mesh.gradients(model, sites[np.newaxis])
    none = await mesh.gradients(model, sites)
    assert one.geometry_sites.shape == (1, *sites.shape)
    np.testing.assert_array_equal(one.geometry_sites[0], none.geometry_sites)


async def test_coordinates_of_the_file_are_the_default(mesh: AsyncMesh) -> None:
    model = await created(mesh, PDB_1YJP)
    given = await mesh.gradients(model, sites_of(model))
    default = await mesh.gradients(model)
    np.testing.assert_array_equal(given.geometry_sites, default.geometry_sites)
    assert default.geometry_sites.dtype == np.float64


@pytest.mark.parametrize("order", ["C", "F"])
async def test_coordinates_in_a_bundle(
    mesh: AsyncMesh, shared_mesh: EmbeddedMesh, order: Any
) -> None:
    model = await created(mesh, PDB_1YJP)
    batch = noisy(sites_of(model), 20, seed=9)
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(batch, order=order))
    bundle = await mesh.bundles.upload(buffer.getvalue(), kind="coordinates")
    request = gradients_pb2.ComputeGradientsRequest(
        model_id=model.model_id,
        coordinates=gradients_pb2.Coordinates(bundle_id=bundle.bundle_id),
        chunk_bytes=16384,
    )
    async with raw(shared_mesh) as stubs:
        answer = await stubs.gradients(request)
    expected = await mesh.gradients(model, batch)
    np.testing.assert_allclose(
        answer.arrays["geometry_sites"], expected.geometry_sites, rtol=1e-12, atol=1e-12
    )
    for bundle_id in expected.bundle_ids:
        assert (await mesh.bundles.get(bundle_id)).kind == "gradients"


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("given", ["float32", "float64", None])
async def test_precision(mesh: AsyncMesh, precision: Any, given: Any) -> None:
    model = await created(mesh, PDB_1YJP)
    sites = None if given is None else sites_of(model).astype(given)
    result = await mesh.gradients(model, sites, precision=precision)
    exact = await mesh.gradients(model, None if sites is None else sites.astype(np.float64))
    assert result.geometry_sites.dtype == precision
    np.testing.assert_array_equal(result.geometry_sites, exact.geometry_sites.astype(precision))
    # Inside, all is float64: the energy does not depend on the type of the answer.
    assert result.energy == exact.energy


async def test_progress(mesh: AsyncMesh) -> None:
    content = wheel_bytes(PDB_1YJP) + f"REMARK {uuid.uuid4().hex}\n".encode()
    model = await mesh.create_model(content, include_atoms=True)
    seen: list[Progress] = []
    await mesh.gradients(model, noisy(sites_of(model), 3), on_progress=seen.append)
    assert (seen[0].step, seen[0].samples_total) == ("queued", 3)
    assert "build_restraints" in [progress.step for progress in seen]
    assert {progress.samples_total for progress in seen} == {3}
    agents = {agent.agent_id for agent in await mesh.agents()}
    assert seen[0].worker_id == ""
    assert {progress.worker_id for progress in seen[1:]} <= agents


async def test_repeated_request_is_not_computed_again(
    mesh: AsyncMesh, shared_mesh: EmbeddedMesh
) -> None:
    model = await created(mesh, PDB_1YJP)
    batch = noisy(sites_of(model), 20)
    request = gradients_pb2.ComputeGradientsRequest(
        request_id=uuid.uuid4().hex,
        model_id=model.model_id,
        coordinates=gradients_pb2.Coordinates(tensor=to_message(batch, "coordinates")),
    )
    async with raw(shared_mesh) as stubs:
        first, second = await stubs.gradients(request), await stubs.gradients(request)
    # Step times are measured, so that equal ones come from one calculation.
    assert first.summary == second.summary
    assert first.summary is not None
    assert first.summary.step_times
    assert first.samples == second.samples
    np.testing.assert_array_equal(first.arrays["geometry_sites"], second.arrays["geometry_sites"])
    assert [progress.step for progress in second.progress] == ["queued"]


async def test_request_that_was_given_up_can_be_made_again(
    mesh: AsyncMesh, shared_mesh: EmbeddedMesh
) -> None:
    model = await created(mesh, AF)
    batch = noisy(sites_of(model), 20, sigma=0.3)
    buffer = io.BytesIO()
    np.save(buffer, batch)
    bundle = await mesh.bundles.upload(buffer.getvalue(), kind="coordinates")
    request = gradients_pb2.ComputeGradientsRequest(
        request_id=uuid.uuid4().hex,
        model_id=model.model_id,
        coordinates=gradients_pb2.Coordinates(bundle_id=bundle.bundle_id),
    )
    async with raw(shared_mesh) as stubs:
        call = stubs.stub.ComputeGradients(request, metadata=stubs.metadata)
        async for response in call:
            if response.HasField("samples"):
                break
        call.cancel()
        # Two who ask for the same at once, one of whom leaves, get it too.
        other = stubs.stub.ComputeGradients(request, metadata=stubs.metadata)
        await other.read()
        answers = asyncio.gather(stubs.gradients(request), stubs.gradients(request))
        other.cancel()
        one, two = await answers
    expected = await mesh.gradients(model, batch[[0, 19]])
    assert len(one.samples) == 20
    assert one.summary is not None
    assert two.summary is not None
    assert one.summary.bundle_ids == two.summary.bundle_ids
    for place, own in ((0, 0), (19, 1)):
        assert same(one.arrays["geometry_sites"][place], expected.geometry_sites[own])


async def test_provenance(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(
        wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), restraints=[ETHANOL], include_atoms=True
    )
    assert model.atoms is not None
    inputs = (model.macromolecule, model.reflections, *model.restraints)
    assert (await mesh.bundles.get(model.model_id)).derived_from == inputs
    # Coordinates of its own, since the same content is one bundle, whatever it came from first.
    result = await mesh.gradients(model, model.atoms.sites + 0.0625)
    (bundle_id,) = result.bundle_ids
    assert (await mesh.bundles.get(bundle_id)).derived_from == (model.model_id,)


@pytest.mark.parametrize("packed", [False, True])
async def test_formats(mesh: AsyncMesh, packed: bool) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if packed else bytes
    results = []
    for name in ("pae_model.pdb", "pae_model.cif"):
        model = await mesh.create_model(
            pack(wheel_bytes(f"mmtbx/regression/pdbs/{name}")), include_atoms=True
        )
        results.append((model, await mesh.gradients(model, noisy(sites_of(model)))))
    (pdb, expected), (cif, result) = results
    assert pdb.atoms is not None
    assert cif.atoms is not None
    assert pdb.atoms.names == cif.atoms.names
    assert same(result.geometry_sites, expected.geometry_sites)


async def test_files_by_their_paths(mesh: AsyncMesh, tmp_path: Path) -> None:
    path = tmp_path / "model.pdb.gz"
    path.write_bytes(gzip.compress(wheel_bytes(PDB_1YJP)))
    model = await mesh.create_model(path)
    assert (await mesh.bundles.get(model.macromolecule)).display_name == "model.pdb.gz"
    assert (await mesh.gradients(model)).ok


async def test_dictionary_for_an_unknown_ligand(mesh: AsyncMesh) -> None:
    path = wheel_file("iotbx/regression/data/2ERL.pdb")
    unknown = await mesh.create_model(path)
    assert unknown.summary.unknown_residues == ("EOH",)
    with pytest.raises(FailedPrecondition) as caught:
        await mesh.gradients(unknown)
    assert caught.value.reason == "UNKNOWN_RESIDUES"
    assert caught.value.metadata["subjects"] == "EOH"
    assert "restraint CIF" in caught.value.message
    known = await mesh.create_model(path, restraints=[ETHANOL.replace(b"1.513", b"1.520")])
    assert known.summary.unknown_residues == ()
    assert known.model_id != unknown.model_id
    result = await mesh.gradients(known)
    assert result.ok
    # Two dictionaries are two models: a longer bond has another energy.
    other = await mesh.create_model(path, restraints=[ETHANOL.replace(b"1.513", b"1.700")])
    bonds = [(await mesh.gradients(m)).geometry.terms["bond"] for m in (known, other)]
    assert bonds[0].count == bonds[1].count
    assert bonds[0].energy != bonds[1].energy
    with pytest.raises(FailedPrecondition):
        await mesh.gradients(unknown)


async def test_arrays_follow_the_file(mesh: AsyncMesh) -> None:
    path = "mmtbx/geometry/tests/1ahq_trunc.pdb"
    straight = await created(mesh, path)
    mixed = await mesh.create_model(shuffled(wheel_bytes(path), seed=3), include_atoms=True)
    places = labels(Table(straight))  # type: ignore[arg-type]
    order = np.array([places[name] for name in labels(Table(mixed))])  # type: ignore[arg-type]
    assert not np.array_equal(order, np.arange(len(order)))
    np.testing.assert_array_equal(sites_of(mixed), sites_of(straight)[order])
    sites = noisy(sites_of(straight))
    expected = await mesh.gradients(straight, sites)
    result = await mesh.gradients(mixed, sites[order])
    assert result.energy == pytest.approx(expected.energy, rel=1e-9)
    assert same(result.geometry_sites, expected.geometry_sites[order])


async def test_geometry_only_depends_on_sites(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    with pytest.raises(InvalidInput) as caught:
        await mesh.gradients(model, with_respect_to=("occupancy",), **GEOMETRY)
    assert caught.value.reason == "PARAMETER_NOT_IN_TARGET"


async def test_the_engine_is_chosen_and_told(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    for options, engine in (
        (GEOMETRY, "fast"),
        ({"target": "combined"}, "fast"),
        ({"target": "combined", "engine": "cctbx"}, "cctbx"),
        ({"target": "xray", "engine": "fast"}, "cctbx"),
    ):
        assert (await mesh.gradients(model, **options)).engine == engine
        async with mesh.session(model, **options) as session:
            assert session.engine == engine
    batch = noisy(sites_of(model), 4)
    fast, slow = [await mesh.gradients(model, batch, engine=engine) for engine in ("fast", "cctbx")]
    assert same(fast.combined_sites, slow.combined_sites)
    for ours, theirs in zip(fast.samples, slow.samples, strict=True):
        assert ours.combined.value == pytest.approx(theirs.combined.value, rel=1e-9)


async def test_special_positions_are_cctbx_unless_asked(mesh: AsyncMesh) -> None:
    model = await mesh.create_model(crystal_with_symmetry_bond(special=True))
    assert (await mesh.gradients(model)).engine == "cctbx"
    assert (await mesh.gradients(model, engine="fast")).engine == "fast"
