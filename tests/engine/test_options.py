"""Gradients per term, of selected atoms, of tensors of displacement, and with phase probabilities."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cctbx import adptbx
from cctbx.array_family import flex

from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.geometry.agent.evaluation import Evaluation
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.engine import EngineError, ModelInputs, RestraintLibrary, XrayOptions
from bxmesh.server.geometry.engine import macromolecule as reading
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.types import TERMS
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, wheel_bytes


def shaken(model: BuiltModel, scale: float = 0.1) -> Any:
    sites = model.atoms.sites
    return sites + np.random.default_rng(2).normal(scale=scale, size=sites.shape)


@pytest.mark.parametrize("path", [PDB_1YJP, PDB_7N2L])
def test_the_gradients_of_the_terms_add_up(built: Callable[[str], BuiltModel], path: str) -> None:
    model = built(path)
    sites = shaken(model)
    whole, apart = model.geometry(sites), model.geometry(sites, per_term=True)
    assert set(apart.term_gradients) == set(TERMS)
    assert apart.energy == pytest.approx(whole.energy, rel=1e-12)
    total = sum(apart.term_gradients.values())
    assert np.allclose(total, whole.gradients, rtol=0, atol=1e-9)
    assert not whole.term_gradients
    # Each against finite differences of its own energy.
    generator = np.random.default_rng(3)
    for name in ("bond", "angle", "dihedral", "chirality", "planarity", "nonbonded"):
        if not apart.terms[name].energy:
            continue
        direction = generator.normal(size=sites.shape)
        step = 1e-5
        up = model.geometry(sites + step * direction).terms[name].energy
        down = model.geometry(sites - step * direction).terms[name].energy
        expected = np.vdot(apart.term_gradients[name], direction)
        assert (up - down) / (2 * step) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def options(**fields: Any) -> gradients_pb2.GradientOptions:
    fields.setdefault("target", gradients_pb2.TARGET_GEOMETRY)
    return gradients_pb2.GradientOptions(**fields)


def test_terms_are_tensors_when_they_are_asked_for(built: Callable[[str], BuiltModel]) -> None:
    evaluation = Evaluation(built(PDB_1YJP), options(gradients_per_term=True))
    evaluation.prepare(Steps())
    _, gradients = evaluation.evaluate(None)
    names = {f"geometry_{term}_sites" for term in TERMS}
    assert set(evaluation.tensors) == set(gradients) == {"geometry_sites", *names}
    total = sum(gradients[name] for name in names)
    assert np.allclose(total, gradients["geometry_sites"], rtol=0, atol=1e-9)


def test_atoms_that_are_not_selected_have_no_gradient(crystal: BuiltModel) -> None:
    every = Evaluation(crystal, options(target=gradients_pb2.TARGET_COMBINED))
    some = Evaluation(
        crystal, options(target=gradients_pb2.TARGET_COMBINED, selection="name CA or name C")
    )
    for evaluation in (every, some):
        evaluation.prepare(Steps())
    whole_value, whole = every.evaluate(None)
    value, gradients = some.evaluate(None)
    chosen = np.isin(np.char.strip(crystal.atoms.name), ["CA", "C"])
    assert 0 < chosen.sum() < len(chosen)
    for gradient in gradients.values():
        assert not gradient[~chosen].any()
    for name in ("geometry_sites", "xray_sites"):
        assert np.array_equal(gradients[name][chosen], whole[name][chosen])
    assert value.geometry.energy == whole_value.geometry.energy
    assert value.geometry.gradient_norm == pytest.approx(
        np.linalg.norm(gradients["geometry_sites"])
    )
    assert value.geometry.gradient_norm < whole_value.geometry.gradient_norm
    assert np.array_equal(some.moved, chosen & crystal.atom_mask)


def test_selections_are_in_the_order_of_the_file(built: Callable[[str], BuiltModel]) -> None:
    model = built("iotbx/regression/secondary_structure/1ubf_cutted.pdb")
    mask = model.select("chain A and resseq 5:7 and not name CB")
    atoms = model.atoms
    numbers = np.array([int(text) for text in np.char.strip(atoms.resseq)])
    expected = (
        (np.char.strip(atoms.chain) == "A")
        & (numbers >= 5)
        & (numbers <= 7)
        & (np.char.strip(atoms.name) != "CB")
    )
    assert expected.any()
    assert np.array_equal(mask, expected)
    assert model.select("all").all()


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ("name XX", "SELECTION_EMPTY"),
        ("resseq 5 and", "SELECTION_INVALID"),
        ("(name CA", "SELECTION_INVALID"),
        ("name CA)", "SELECTION_INVALID"),
        ("within(5)", "SELECTION_INVALID"),
        ("within(nonsense, name CA)", "SELECTION_INVALID"),
        ("bfactor > abc", "SELECTION_INVALID"),
        ("__import__('os').system('true')", "SELECTION_INVALID"),
        ("(" * 2000, "SELECTION_INVALID"),
        ("not " * 1000, "SELECTION_INVALID"),
        ("'" * 7, "SELECTION_INVALID"),
        ("\x00\n\t", "SELECTION_INVALID"),
    ],
)
def test_selections_that_make_no_sense_are_refused(
    built: Callable[[str], BuiltModel], selection: str, reason: str
) -> None:
    with pytest.raises(EngineError) as raised:
        built(PDB_1YJP).select(selection)
    assert raised.value.reason == reason
    assert len(raised.value.message) < 500
    with pytest.raises(MeshError):
        Evaluation(built(PDB_1YJP), options(selection=selection))


def test_tensors_of_displacement(library: RestraintLibrary) -> None:
    """Against finite differences of U in the Cartesian frame."""
    model = build(ModelInputs(wheel_bytes(PDB_7N2L), wheel_bytes(MTZ_7N2L)), library)
    chosen = XrayOptions(target="ls", algorithm="direct", with_respect_to=frozenset({"adp_aniso"}))
    gradients = model.xray(options=chosen).gradients["adp_aniso"]
    assert gradients.shape == (len(model.atoms), 6)
    target = model._xray
    assert target is not None
    manager, functor = target._scaled["ls", "direct", True]
    structure = manager.xray_structure
    scatterers = structure.scatterers()
    anisotropic = [i for i, each in enumerate(scatterers) if each.flags.use_u_aniso()]
    if not anisotropic:
        structure.convert_to_anisotropic(selection=flex.bool(scatterers.size(), True))
        gradients = model.xray(options=chosen).gradients["adp_aniso"]
        anisotropic = list(range(scatterers.size()))
    cell = structure.unit_cell()

    def value(index: int, component: int, step: float) -> float:
        kept = scatterers[index].u_star
        tensor = list(adptbx.u_star_as_u_cart(cell, kept))
        tensor[component] += step
        scatterers[index].u_star = adptbx.u_cart_as_u_star(cell, tensor)
        manager.update_xray_structure(structure, update_f_calc=True, update_f_mask=False)
        found: float = functor(compute_gradients=False).target_work()
        scatterers[index].u_star = kept
        return found

    order = target._order
    places = order._places
    for index in anisotropic[:4]:
        for component in range(6):
            step = 1e-5
            slope = (value(index, component, step) - value(index, component, -step)) / (2 * step)
            expected = pytest.approx(slope, rel=1e-2, abs=1e-3 * np.abs(gradients).max())
            assert gradients[places[index], component] == expected


def phased(library: RestraintLibrary) -> tuple[bytes, bytes]:
    """A model, and data of it with phases that are nearly known."""
    pdb = wheel_bytes(PDB_1YJP)
    truth = reading.read(pdb)
    structure = truth.hierarchy.extract_xray_structure(crystal_symmetry=truth.symmetry)
    f_calc = structure.structure_factors(d_min=1.8, algorithm="direct").f_calc()
    f_obs = abs(f_calc)
    f_obs.set_sigmas(f_obs.data() * 0.02)
    f_obs.set_observation_type_xray_amplitude()
    strength = 3.0
    phases = flex.arg(f_calc.data())
    data = flex.hendrickson_lattman(
        [(strength * np.cos(phase), strength * np.sin(phase), 0.0, 0.0) for phase in phases]
    )
    probabilities = f_calc.customized_copy(data=data, sigmas=None)
    dataset = f_obs.as_mtz_dataset(column_root_label="FOBS")
    dataset.add_miller_array(
        f_obs.generate_r_free_flags(fraction=0.1, use_lattice_symmetry=False),
        column_root_label="R-free-flags",
    )
    dataset.add_miller_array(probabilities, column_root_label="HL")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.mtz"
        dataset.mtz_object().write(str(path))
        return pdb, path.read_bytes()


def test_likelihood_with_phase_probabilities(
    library: RestraintLibrary, crystal: BuiltModel
) -> None:
    model = build(ModelInputs(*phased(library)), library)
    chosen = XrayOptions(target="mlhl", algorithm="direct")
    sites = shaken(model, 0.05)
    result = model.xray(sites, chosen)
    assert result.target == "mlhl"
    assert result.value != model.xray(sites, replace(chosen, target="ml")).value
    direction = np.random.default_rng(4).normal(size=sites.shape)
    step = 1e-4
    up = model.xray(sites + step * direction, chosen).value
    down = model.xray(sites - step * direction, chosen).value
    slope = (up - down) / (2 * step)
    assert np.vdot(result.gradients["sites"], direction) == pytest.approx(slope, rel=1e-3)
    with pytest.raises(EngineError) as raised:
        crystal.xray(options=XrayOptions(target="mlhl"))
    assert raised.value.reason == "NO_PHASE_PROBABILITIES"
