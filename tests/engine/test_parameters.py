"""Gradients by displacement and occupancy, of isotropic and anisotropic atoms side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import iotbx.pdb
import mmtbx.f_model
import numpy as np
import pytest
from cctbx import adptbx, xray
from iotbx import mtz

from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary, XrayOptions
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.types import TargetName
from tests.engine.plain import label, labels
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_bytes, wheel_file

EVERYTHING = frozenset({"sites", "adp_iso", "adp_aniso", "occupancy"})


@pytest.fixture(scope="module")
def text() -> bytes:
    """7n2l with every other atom anisotropic and every third of partial occupancy."""
    source = iotbx.pdb.input(str(wheel_file(PDB_7N2L)))
    hierarchy = source.construct_hierarchy()
    generator = np.random.default_rng(5)
    for place, atom in enumerate(hierarchy.atoms()):
        if place % 3 == 0:
            atom.set_occ(0.7)
        if place % 2 == 0:
            spread = generator.normal(0, 0.05, (3, 3))
            tensor = adptbx.b_as_u(atom.b) * np.eye(3) + spread @ spread.T
            atom.set_uij(tuple(tensor[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]))
    written: str = hierarchy.as_pdb_string(crystal_symmetry=source.crystal_symmetry())
    return written.encode()


@pytest.fixture(scope="module")
def mixed(text: bytes, library: RestraintLibrary) -> BuiltModel:
    return build(ModelInputs(text, wheel_bytes(MTZ_7N2L)), library)


@pytest.mark.parametrize("algorithm", ["fft", "direct"])
@pytest.mark.parametrize("target", ["ml", "ls"])
def test_equals_plain_cctbx(mixed: BuiltModel, text: bytes, algorithm: str, target: str) -> None:
    arrays = {
        a.info().label_string(): a for a in mtz.object(str(wheel_file(MTZ_7N2L))).as_miller_arrays()
    }
    f_obs, flags = arrays["FOBS,SIGFOBS"], arrays["R-free-flags"]
    source = iotbx.pdb.input(source_info=None, lines=text.decode().splitlines())
    hierarchy = source.construct_hierarchy()
    structure = hierarchy.extract_xray_structure(crystal_symmetry=source.crystal_symmetry())
    structure.scattering_type_registry(table="n_gaussian", d_min=f_obs.d_min())
    accuracy = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
    accuracy.algorithm = algorithm
    manager = mmtbx.f_model.manager(
        f_obs=f_obs,
        r_free_flags=flags.array(data=flags.data() == 0),
        xray_structure=structure,
        sf_and_grads_accuracy_params=accuracy,
        target_name={"ml": "ml", "ls": "ls_wunit_k1"}[target],
    )
    manager.update_all_scales()
    expected = manager.target_functor()(compute_gradients=True)
    scatterers = structure.scatterers()
    aniso = np.array(scatterers.extract_use_u_aniso())
    assert 0 < aniso.sum() < len(aniso)
    places = labels(mixed)
    order = np.array([places[label(atom)] for atom in hierarchy.atoms()])
    found = mixed.xray(
        options=XrayOptions(target=target, algorithm=algorithm, with_respect_to=EVERYTHING)  # type: ignore[arg-type]
    )
    assert found.value == pytest.approx(expected.target_work(), rel=1e-12)

    def equal(name: str, values: Any) -> None:
        difference = np.linalg.norm(found.gradients[name][order] - values)
        assert difference < 1e-9 * np.linalg.norm(values)

    equal("sites", np.array(expected.d_target_d_site_cart()))
    xray.set_scatterer_grad_flags(scatterers=scatterers, u_aniso=True)
    tensors = np.array(expected.gradients_wrt_atomic_parameters(u_aniso=True)).reshape(-1, 6)
    equal("adp_aniso", np.where(aniso[:, None], tensors, 0.0))
    xray.set_scatterer_grad_flags(scatterers=scatterers, u_iso=True)
    isotropic = np.array(expected.gradients_wrt_atomic_parameters(u_iso=True))
    equal("adp_iso", np.where(aniso, tensors[:, :3].sum(axis=1), isotropic))
    xray.set_scatterer_grad_flags(scatterers=scatterers, occupancy=True)
    equal("occupancy", np.array(expected.gradients_wrt_atomic_parameters(occupancy=True)))


def _iso(cell: Any, scatterer: Any, step: float, _: int) -> None:
    if scatterer.flags.use_u_aniso():
        for component in range(3):
            _tensor(cell, scatterer, step, component)
    else:
        scatterer.u_iso += step


def _tensor(cell: Any, scatterer: Any, step: float, component: int) -> None:
    if scatterer.flags.use_u_aniso():
        tensor = list(adptbx.u_star_as_u_cart(cell, scatterer.u_star))
        tensor[component] += step
        scatterer.u_star = adptbx.u_cart_as_u_star(cell, tensor)


def _occupy(_cell: Any, scatterer: Any, step: float, _: int) -> None:
    scatterer.occupancy += step


@pytest.mark.parametrize("target", ["ml", "ls"])
@pytest.mark.parametrize(
    ("name", "change", "components"),
    [("adp_iso", _iso, 1), ("adp_aniso", _tensor, 6), ("occupancy", _occupy, 1)],
)
def test_equal_finite_differences(
    mixed: BuiltModel,
    target: TargetName,
    name: str,
    change: Callable[[Any, Any, float, int], None],
    components: int,
) -> None:
    options = XrayOptions(target, "direct", with_respect_to=EVERYTHING)
    gradients = mixed.xray(options=options).gradients[name].reshape(len(mixed.atoms), -1)
    assert gradients.shape[1] == components
    targets = mixed.scaled_at(None)
    manager, functor = targets._scaled[replace(options, with_respect_to=frozenset())]
    scatterers, cell = manager.xray_structure.scatterers(), manager.xray_structure.unit_cell()

    def value(index: int, step: float, component: int) -> float:
        change(cell, scatterers[index], step, component)
        manager.update_xray_structure(update_f_calc=True, update_f_mask=False)
        found: float = functor(compute_gradients=False).target_work()
        change(cell, scatterers[index], -step, component)
        return found

    step = 1e-4
    for index in (0, 1, 7, 12):
        place = targets._order.places[index]
        for component in range(components):
            slope = (value(index, step, component) - value(index, -step, component)) / (2 * step)
            allowed = 1e-5 * np.abs(gradients).max()
            assert slope == pytest.approx(gradients[place, component], rel=1e-3, abs=allowed)
