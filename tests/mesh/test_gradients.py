"""The main job through the whole mesh: equal to cctbx in this process, whatever the way in."""

from __future__ import annotations

import gzip
import io
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iotbx.pdb
import mmtbx.f_model
import numpy as np
import pytest
from cctbx import adptbx, xray
from cctbx.array_family import flex
from iotbx import mtz

from bxmesh.client import AsyncMesh, Model, Progress
from bxmesh.client.errors import FailedPrecondition, InvalidInput
from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.geometry.engine import RestraintLibrary
from bxmesh.tensors import to_message
from tests.engine.plain import PlainGeometry, label, labels
from tests.engine.test_macromolecule import ETHANOL
from tests.engine.test_order import shuffled
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.raw import noisy, raw
from tests.processes import until

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
def library(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What cctbx in this process takes restraints from."""
    RestraintLibrary(tmp_path_factory.mktemp("library")).load()


class Table:
    """The atoms of a model on the mesh, as the comparison with plain cctbx wants them."""

    def __init__(self, model: Model) -> None:
        atoms = sites_of(model) is not None and model.atoms
        assert atoms
        numbers = [re.fullmatch(r"(-?\w*?\d)(\D?)", number) for number in atoms.residue_numbers]
        self.atoms = self
        self.name, self.altloc = atoms.names, atoms.alternative_locations
        self.resname, self.chain = atoms.residue_names, atoms.chain_ids
        self.resseq = [number[1] for number in numbers if number]
        self.icode = [number[2] for number in numbers if number]

    def __len__(self) -> int:
        return len(self.name)


def sites_of(model: Model) -> np.ndarray:
    assert model.atoms is not None
    return model.atoms.sites


async def created(mesh: AsyncMesh, path: str, **options: Any) -> Model:
    return await mesh.create_model(wheel_file(path), include_atoms=True, **options)


async def crystal(mesh: AsyncMesh) -> Model:
    return await created(mesh, PDB_7N2L, reflections=wheel_file(MTZ_7N2L))


def same(result: np.ndarray, expected: np.ndarray, tolerance: float = 1e-9) -> bool:
    return bool(np.linalg.norm(result - expected) <= tolerance * np.linalg.norm(expected))


@pytest.mark.parametrize("name", MODELS)
async def test_geometry_equals_cctbx(mesh: AsyncMesh, name: str) -> None:
    model = await created(mesh, MODELS[name])
    plain = PlainGeometry(MODELS[name], Table(model))  # type: ignore[arg-type]
    for sites in (sites_of(model), noisy(sites_of(model))):
        result = await mesh.gradients(model, sites, **GEOMETRY)
        energies, expected = plain.evaluate(sites)
        assert same(result.geometry_sites, expected)
        assert result.energy == pytest.approx(energies.target, rel=1e-9)
        assert result.geometry.gradient_norm == pytest.approx(np.linalg.norm(expected), rel=1e-9)
        for term, value in result.geometry.terms.items():
            assert value.count == getattr(energies, f"n_{term}_proxies")
            sum_ = getattr(energies, f"{term}_residual_sum")
            assert value.energy == pytest.approx(sum_, rel=1e-9, abs=1e-9)
    assert {"bond", "angle", "nonbonded"} <= set(result.geometry.terms)


class PlainXray:
    """`mmtbx.f_model.manager` over 7n2l, its scales determined at the given coordinates."""

    def __init__(
        self, model: Model, algorithm: str, target: str, scaled_at: np.ndarray | None = None
    ) -> None:
        arrays = {
            array.info().label_string(): array
            for array in mtz.object(str(wheel_file(MTZ_7N2L))).as_miller_arrays()
        }
        f_obs, flags = arrays["FOBS,SIGFOBS"], arrays["R-free-flags"]
        source = iotbx.pdb.input(str(wheel_file(PDB_7N2L)))
        hierarchy = source.construct_hierarchy()
        places = labels(Table(model))  # type: ignore[arg-type]
        self.order = np.array([places[label(atom)] for atom in hierarchy.atoms()])
        self.structure = hierarchy.extract_xray_structure(
            crystal_symmetry=source.crystal_symmetry()
        )
        self.structure.scattering_type_registry(table="n_gaussian", d_min=f_obs.d_min())
        if scaled_at is not None:
            self.structure.set_sites_cart(flex.vec3_double(scaled_at[self.order]))
        accuracy = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
        accuracy.algorithm = algorithm
        self.manager = mmtbx.f_model.manager(
            f_obs=f_obs,
            r_free_flags=flags.array(data=flags.data() == 0),
            xray_structure=self.structure,
            sf_and_grads_accuracy_params=accuracy,
            target_name={"ml": "ml", "ls": "ls_wunit_k1"}[target],
        )
        self.manager.update_all_scales()
        self.functor = self.manager.target_functor()

    def evaluate(self, sites: np.ndarray) -> Any:
        self.structure.set_sites_cart(flex.vec3_double(sites[self.order]))
        self.manager.update_xray_structure(
            xray_structure=self.structure, update_f_calc=True, update_f_mask=False
        )
        return self.functor(compute_gradients=True)

    def in_file_order(self, values: Any) -> np.ndarray:
        array = np.array(values)
        placed = np.empty_like(array)
        placed[self.order] = array
        return placed


@pytest.mark.parametrize("algorithm", ["fft", "direct"])
@pytest.mark.parametrize("target", ["ml", "ls"])
async def test_xray_equals_cctbx(mesh: AsyncMesh, target: Any, algorithm: Any) -> None:
    model = await crystal(mesh)
    plain = PlainXray(model, algorithm, target)
    for sites in (sites_of(model), noisy(sites_of(model))):
        result = await mesh.gradients(
            model,
            sites,
            target="xray",
            xray_target=target,
            algorithm=algorithm,
            with_respect_to=("sites", "adp_iso", "occupancy"),
        )
        expected = plain.evaluate(sites)
        value = expected.target_work()
        sites_expected = plain.in_file_order(expected.d_target_d_site_cart())
        scatterers = plain.structure.scatterers()
        xray.set_scatterer_grad_flags(scatterers=scatterers, occupancy=True)
        occupancy = expected.gradients_wrt_atomic_parameters(occupancy=True)
        assert result.xray.target == target
        assert result.xray.value == pytest.approx(value, rel=1e-9)
        assert result.r_work == pytest.approx(plain.manager.r_work(), rel=1e-9)
        assert result.r_free == pytest.approx(plain.manager.r_free(), rel=1e-9)
        assert result.xray.reflections == plain.manager.f_obs().size()
        assert same(result.xray_sites, sites_expected)
        assert same(result.arrays["xray_occupancy"], plain.in_file_order(occupancy))
        assert result.arrays["xray_adp_iso"].shape == (model.summary.atoms,)
        assert "geometry_sites" not in result.arrays
    if algorithm == "direct":
        check_adps(plain, sites, result.arrays["xray_adp_iso"])


def check_adps(plain: PlainXray, sites: np.ndarray, gradients: np.ndarray) -> None:
    """Compares the gradients by ADPs with differences of the target."""
    step = 1e-5
    cell = plain.structure.unit_cell()
    for place in (0, 40, 149):
        scatterer = plain.structure.scatterers()[place]
        iso, star = scatterer.u_iso, scatterer.u_star
        values = []
        for sign in (1, -1):
            if scatterer.flags.use_u_aniso():
                cart = list(adptbx.u_star_as_u_cart(cell, star))
                for axis in range(3):
                    cart[axis] += sign * step
                scatterer.u_star = adptbx.u_cart_as_u_star(cell, cart)
            else:
                scatterer.u_iso = iso + sign * step
            values.append(plain.evaluate(sites).target_work())
            scatterer.u_iso, scatterer.u_star = iso, star
        difference = (values[0] - values[1]) / (2 * step)
        assert gradients[plain.order[place]] == pytest.approx(difference, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("target", ["geometry", "ml", "ls"])
async def test_gradients_equal_finite_differences(mesh: AsyncMesh, target: Any) -> None:
    model = await crystal(mesh)
    sites = noisy(sites_of(model))
    options: dict[str, Any] = (
        GEOMETRY
        if target == "geometry"
        else {"target": "xray", "xray_target": target, "algorithm": "direct"}
    )
    generator = np.random.default_rng(1)
    restrained = np.flatnonzero(model.atoms.mask) if model.atoms else []
    places = list(zip(generator.choice(restrained, 6), generator.integers(0, 3, 6), strict=True))
    step = 1e-5 if target == "geometry" else 1e-4
    moved = np.repeat(sites[np.newaxis], 12, axis=0)
    for row, (atom, axis) in enumerate(places):
        moved[2 * row, atom, axis] += step
        moved[2 * row + 1, atom, axis] -= step
    gradients = await mesh.gradients(model, sites, **options)
    values = np.array(
        [
            sample.geometry.energy if sample.geometry else sample.xray.value
            for sample in (await mesh.gradients(model, moved, **options)).samples
            if sample.geometry or sample.xray
        ]
    )
    differences = (values[0::2] - values[1::2]) / (2 * step)
    (array,) = gradients.arrays.values()
    expected = [array[atom, axis] for atom, axis in places]
    np.testing.assert_allclose(differences, expected, rtol=5e-3, atol=1e-7)


async def test_combined_with_given_weights(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    sites = noisy(sites_of(model))
    result = await mesh.gradients(
        model, sites, target="combined", geometry_weight=0.25, xray_weight=1000.0
    )
    combined = result.sample.combined
    assert combined is not None
    assert (combined.geometry_weight, combined.xray_weight) == (0.25, 1000.0)
    assert combined.value == pytest.approx(
        0.25 * result.energy + 1000.0 * result.xray.value, rel=1e-12
    )
    expected = 0.25 * result.geometry_sites + 1000.0 * result.xray_sites
    assert same(result.combined_sites, expected, 1e-12)
    assert combined.gradient_norm == pytest.approx(np.linalg.norm(expected), rel=1e-12)


async def test_combined_with_automatic_weights(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    at_home = await mesh.gradients(model)
    ratio = at_home.geometry.gradient_norm / at_home.xray.gradient_norm
    away = await mesh.gradients(model, noisy(sites_of(model)), target="combined")
    # The weights do not move with the coordinates, or the sum would be no function of them.
    for result in (at_home, away):
        combined = result.sample.combined
        assert combined is not None
        assert combined.geometry_weight == 1.0
        assert combined.xray_weight == pytest.approx(ratio, rel=1e-12)
    half = await mesh.gradients(model, target="combined", geometry_weight=0.5)
    assert half.sample.combined is not None
    assert half.sample.combined.xray_weight == pytest.approx(0.5 * ratio, rel=1e-12)


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


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (18, {"target": "xray", "with_respect_to": ("sites", "occupancy")}),
        (18, {"target": "combined", "xray_weight": 10.0}),
        (40, {"target": "combined", "xray_weight": 10.0}),
    ],
)
async def test_xray_batch_equals_single_calls(
    mesh: AsyncMesh, samples: int, options: dict[str, Any]
) -> None:
    model = await crystal(mesh)
    batch = noisy(sites_of(model), samples)
    result = await mesh.gradients(model, batch, **options)
    assert [sample.sample for sample in result.samples] == list(range(samples))
    for place in (0, 7, 8, samples - 1):
        single = await mesh.gradients(model, batch[place], **options)
        for name, array in result.arrays.items():
            assert same(array[place], single.arrays[name], 1e-12), name
        assert result.samples[place].xray == single.xray


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
    np.testing.assert_array_equal(
        first.arrays["geometry_sites"], second.arrays["geometry_sites"]
    )
    assert [progress.step for progress in second.progress] == ["queued"]


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


async def test_gzipped_reflections(mesh: AsyncMesh) -> None:
    packed = await mesh.create_model(
        gzip.compress(wheel_bytes(PDB_7N2L)), gzip.compress(wheel_bytes(MTZ_7N2L))
    )
    plain = await crystal(mesh)
    assert packed.summary.reflections == plain.summary.reflections
    results = [await mesh.gradients(model, target="xray") for model in (packed, plain)]
    np.testing.assert_array_equal(results[0].xray_sites, results[1].xray_sites)


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


async def test_atoms_without_restraints_have_zero_gradients(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    assert model.atoms is not None
    result = await mesh.gradients(model)
    assert not result.geometry_sites[~model.atoms.mask].any()
    assert result.geometry_sites[model.atoms.mask].any(axis=1).all()
    # Hydrogens scatter all the same.
    assert result.xray_sites.any(axis=1).all()
    assert any("67 hydrogens" in notice for notice in model.summary.notices)


async def test_geometry_only_depends_on_sites(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    with pytest.raises(InvalidInput) as caught:
        await mesh.gradients(model, with_respect_to=("occupancy",), **GEOMETRY)
    assert caught.value.reason == "PARAMETER_NOT_IN_TARGET"
