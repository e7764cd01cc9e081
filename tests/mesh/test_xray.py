"""X-ray and combined targets through the mesh: equal to cctbx in this process."""

from __future__ import annotations

import gzip
from typing import Any

import iotbx.pdb
import mmtbx.f_model
import numpy as np
import pytest
from cctbx import adptbx, xray
from cctbx.array_family import flex
from iotbx import mtz

from bxmesh.client import AsyncMesh, Model
from tests.engine.plain import label, labels
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_bytes, wheel_file
from tests.mesh.models import Table, crystal, same, sites_of
from tests.mesh.raw import noisy

GEOMETRY = {"target": "geometry"}


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


async def test_gzipped_reflections(mesh: AsyncMesh) -> None:
    packed = await mesh.create_model(
        gzip.compress(wheel_bytes(PDB_7N2L)), gzip.compress(wheel_bytes(MTZ_7N2L))
    )
    plain = await crystal(mesh)
    assert packed.summary.reflections == plain.summary.reflections
    results = [await mesh.gradients(model, target="xray") for model in (packed, plain)]
    np.testing.assert_array_equal(results[0].xray_sites, results[1].xray_sites)


async def test_atoms_without_restraints_have_zero_gradients(mesh: AsyncMesh) -> None:
    model = await crystal(mesh)
    assert model.atoms is not None
    result = await mesh.gradients(model)
    assert not result.geometry_sites[~model.atoms.mask].any()
    assert result.geometry_sites[model.atoms.mask].any(axis=1).all()
    # Hydrogens scatter all the same.
    assert result.xray_sites.any(axis=1).all()
    assert any("67 hydrogens" in notice for notice in model.summary.notices)
