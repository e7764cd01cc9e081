"""Geometry: equal to cctbx called plainly, and to finite differences."""

from collections.abc import Callable

import numpy as np
import pytest

from bxmesh.server.geometry.engine import SampleError, SampleStatus
from bxmesh.server.geometry.engine.model import BuiltModel
from tests.engine.plain import PlainGeometry
from tests.engine.wheel import PDB_1YJP, PDB_7N2L

Built = Callable[[str], BuiltModel]

MODELS = (
    PDB_1YJP,
    "mmtbx/regression/pdbs/AF_json_v3.pdb",
    "mmtbx/regression/pdbs/pae.pdb",
    "iotbx/regression/secondary_structure/1ubf_cutted.pdb",
    "iotbx/regression/secondary_structure/4a7h_chainC.pdb",
    "iotbx/pdb/remediation/tst/dna-rna-test.pdb",
    "iotbx/pdb/remediation/tst/protein-dna-test.pdb",
    PDB_7N2L,
    "mmtbx/regression/pdbs/Fe_1brf_snip_reduced.pdb",
    "mmtbx/geometry/tests/1ahq_trunc.pdb",
)
DNA_RNA = "iotbx/pdb/remediation/tst/dna-rna-test.pdb"


def jittered(model: BuiltModel, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0.0, sigma, model.atoms.sites.shape)
    return model.atoms.sites + noise


@pytest.mark.parametrize("path", MODELS)
def test_equals_plain_cctbx(built: Built, path: str) -> None:
    model = built(path)
    plain = PlainGeometry(path, model)
    for sites in (model.atoms.sites, jittered(model, 0.05)):
        result = model.geometry(sites)
        energies, gradients = plain.evaluate(sites)
        assert result.energy == pytest.approx(energies.target, rel=1e-9)
        scale = np.linalg.norm(gradients)
        assert np.linalg.norm(result.gradients - gradients) < 1e-9 * scale
        for name, term in result.terms.items():
            expected = getattr(energies, f"{name}_residual_sum")
            assert term.energy == pytest.approx(expected, rel=1e-9, abs=1e-9)
            assert term.count == getattr(energies, f"n_{name}_proxies")


@pytest.mark.parametrize("path", [PDB_1YJP, DNA_RNA])
def test_gradients_equal_finite_differences(built: Built, path: str) -> None:
    model = built(path)
    sites = jittered(model, 0.02)
    gradients = model.geometry(sites).gradients
    step = 1e-5
    generator = np.random.default_rng(1)
    restrained = np.flatnonzero(model.atom_mask)
    places = zip(generator.choice(restrained, 20), generator.integers(0, 3, 20), strict=True)
    for atom, axis in places:
        energies = []
        for sign in (1, -1):
            moved = sites.copy()
            moved[atom, axis] += sign * step
            energies.append(model.geometry(moved).energy)
        difference = (energies[0] - energies[1]) / (2 * step)
        assert difference == pytest.approx(gradients[atom, axis], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("path", [PDB_1YJP, DNA_RNA])
def test_terms_sum_to_the_energy(built: Built, path: str) -> None:
    result = built(path).geometry()
    assert sum(term.energy for term in result.terms.values()) == pytest.approx(result.energy)
    names = {"bond", "angle", "dihedral", "chirality", "planarity", "nonbonded"}
    assert all(result.terms[name].count > 0 for name in names)


def test_file_coordinates_are_the_default(built: Built) -> None:
    model = built(PDB_1YJP)
    assert model.geometry().energy == model.geometry(model.atoms.sites.copy()).energy


def test_nucleotides_are_linked(built: Built) -> None:
    model = built(DNA_RNA)
    phosphorus = np.flatnonzero(model.atoms.name == "P")
    assert len(phosphorus)
    moved = model.atoms.sites.copy()
    moved[phosphorus[-1]] += 0.3
    before, after = model.geometry(), model.geometry(moved)
    assert after.terms["bond"].energy > before.terms["bond"].energy + 100
    # Eight residues in two chains: 122 atoms need at least as many bonds as a tree per chain.
    assert before.terms["bond"].count >= int(model.atom_mask.sum()) - 2


def test_hydrogens_are_stripped_with_a_notice(built: Built) -> None:
    model = built(PDB_7N2L)
    hydrogens = model.atoms.element == "H"
    assert model.summary.hydrogens == model.summary.hydrogens_stripped == 67
    assert (model.atom_mask == ~hydrogens).all()
    assert any("67 hydrogens" in notice for notice in model.summary.notices)
    result = model.geometry()
    assert result.gradients.shape == (150, 3)
    assert not result.gradients[hydrogens].any()
    assert result.gradients[~hydrogens].any(axis=1).all()
    assert (result.atom_mask == model.atom_mask).all()


@pytest.mark.parametrize("path", [PDB_1YJP, "mmtbx/regression/pdbs/AF_json_v3.pdb"])
def test_bad_sample_does_not_hurt_the_next(built: Built, path: str) -> None:
    model = built(path)
    good = jittered(model, 0.02)
    expected = model.geometry(good)
    nan = good.copy()
    nan[3, 1] = np.nan
    infinite = good.copy()
    infinite[0, 0] = -np.inf
    bad = {
        SampleStatus.NON_FINITE: (nan, infinite),
        SampleStatus.OUT_OF_RANGE: (good + 2e4,),
        SampleStatus.EXPLODED: (jittered(model, 500.0),) * 2,
        SampleStatus.DEGENERATE: (np.zeros_like(good), np.full_like(good, 7.5)),
    }
    for status, samples in bad.items():
        for sample in samples:
            with pytest.raises(SampleError) as caught:
                model.geometry(sample)
            assert caught.value.status is status
            assert caught.value.message
            after = model.geometry(good)
            assert after.energy == pytest.approx(expected.energy, rel=1e-12)
            np.testing.assert_allclose(after.gradients, expected.gradients, rtol=1e-9, atol=1e-9)


def test_far_apart_chains_are_evaluated(built: Built) -> None:
    model = built(PDB_1YJP)
    moved = model.atoms.sites.copy()
    moved[model.atoms.resname == "HOH"] += 5000.0
    assert np.isfinite(model.geometry(moved).energy)
