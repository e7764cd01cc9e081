"""Gradients per term, of selected atoms, of tensors of displacement, and with phase probabilities."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import iotbx.mtz
import iotbx.pdb
import mmtbx.f_model
import numpy as np
import pytest
from cctbx.array_family import flex
from cctbx.geometry_restraints.flags import flags as geometry_flags

from bxmesh.geometry.v1 import gradients_pb2
from bxmesh.server.errors import MeshError
from bxmesh.server.geometry.agent.evaluation import Evaluation
from bxmesh.server.geometry.agent.steps import Steps
from bxmesh.server.geometry.engine import EngineError, ModelInputs, RestraintLibrary, XrayOptions
from bxmesh.server.geometry.engine import macromolecule as reading
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.types import TERMS
from tests.engine.plain import PlainGeometry, label, labels
from tests.engine.wheel import PDB_1YJP, PDB_7N2L, wheel_bytes


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


@pytest.mark.parametrize("path", [PDB_1YJP, PDB_7N2L])
def test_the_gradient_of_each_term_is_that_of_cctbx(
    built: Callable[[str], BuiltModel], path: str
) -> None:
    model = built(path)
    plain = PlainGeometry(path, model)
    sites = shaken(model)
    apart = model.geometry(sites, per_term=True)
    for name, gradient in apart.term_gradients.items():
        energies, expected = plain.evaluate(sites, flags=geometry_flags(**{name: True}))
        assert np.abs(gradient - expected).max() < 1e-9 * max(1.0, np.abs(expected).max())
        if name in apart.terms:
            assert apart.terms[name].energy == pytest.approx(energies.residual_sum, rel=1e-9)


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


def test_what_is_within_a_distance_is_selected(built: Callable[[str], BuiltModel]) -> None:
    """Without symmetry against distances; with it, copies count."""
    model = built("iotbx/regression/secondary_structure/4a7h_chainC.pdb")
    atoms = model.atoms
    centre = (atoms.name == "CA") & (atoms.resseq == "50")
    assert centre.sum() == 1
    near = np.linalg.norm(atoms.sites - atoms.sites[centre], axis=1) <= 5
    assert np.array_equal(model.select("within(5, name CA and resseq 50)"), near)
    residues = np.isin(atoms.resseq, atoms.resseq[near])
    assert np.array_equal(model.select("residues_within(5, name CA and resseq 50)"), residues)
    crystal = built(PDB_1YJP)
    sites = crystal.atoms.sites
    alone = np.linalg.norm(sites[:, None] - sites[crystal.atoms.name == "N"], axis=2).min(1) <= 4
    found = crystal.select("within(4, name N)")
    assert found[alone].all()
    assert found.sum() > alone.sum()


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ("name XX", "SELECTION_EMPTY"),
        ("resseq 5 and", "SELECTION_INVALID"),
        ("(name CA", "SELECTION_INVALID"),
        ("name CA)", "SELECTION_INVALID"),
        ("within(5)", "SELECTION_INVALID"),
        ("within(5, name CA", "SELECTION_INVALID"),
        ("within(1e9, name CA)", "SELECTION_INVALID"),
        ("within(nan, name CA)", "SELECTION_INVALID"),
        ("within(-1, name CA)", "SELECTION_INVALID"),
        (" or ".join(["within(1, all)"] * 9), "SELECTION_INVALID"),
        ("bfactor >", "SELECTION_INVALID"),
        ("name " + "*" * 300, "SELECTION_INVALID"),
        ("name '* * * * *'", "SELECTION_INVALID"),
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


def test_a_selection_that_cannot_be_read_is_quoted_up_to_there(
    built: Callable[[str], BuiltModel],
) -> None:
    with pytest.raises(EngineError) as raised:
        built(PDB_1YJP).select("name CA and chian A or name N")
    assert "at character 17, where 'name CA and chian' ends" in raised.value.message


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


def test_likelihood_with_phase_probabilities_is_that_of_cctbx(library: RestraintLibrary) -> None:
    pdb, mtz = phased(library)
    model = build(ModelInputs(pdb, mtz), library)
    sites = shaken(model, 0.05)
    result = model.xray(sites, XrayOptions(target="mlhl", algorithm="direct"))
    source = iotbx.pdb.input(source_info=None, lines=pdb.decode().splitlines())
    hierarchy = source.construct_hierarchy()
    structure = hierarchy.extract_xray_structure(crystal_symmetry=source.crystal_symmetry())
    data = model.scaled_at(None).reflections
    structure.scattering_type_registry(table="n_gaussian", d_min=data.f_obs.d_min())
    accuracy = mmtbx.f_model.sf_and_grads_accuracy_master_params.extract()
    accuracy.algorithm = "direct"
    manager = mmtbx.f_model.manager(
        f_obs=data.f_obs,
        r_free_flags=data.r_free_flags,
        abcd=next(a for a in _arrays(mtz) if a.is_hendrickson_lattman_array()),
        xray_structure=structure,
        sf_and_grads_accuracy_params=accuracy,
        target_name="mlhl",
    )
    manager.update_all_scales()
    functor = manager.target_functor()
    places = labels(model)
    order = np.array([places[label(atom)] for atom in hierarchy.atoms()])
    structure.set_sites_cart(flex.vec3_double(sites[order]))
    manager.update_xray_structure(xray_structure=structure, update_f_calc=True)
    expected = functor(compute_gradients=True)
    assert result.value == pytest.approx(expected.target_work(), rel=1e-9)
    gradients = np.array(expected.d_target_d_site_cart())
    difference = np.linalg.norm(result.gradients["sites"][order] - gradients)
    assert difference < 1e-9 * np.linalg.norm(gradients)


def _arrays(mtz: bytes) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.mtz"
        path.write_bytes(mtz)
        return list(iotbx.mtz.object(str(path)).as_miller_arrays())
