"""The evaluator in cctbx's place: the same numbers, counts and refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from bxmesh.restraints import Restraints
from bxmesh.server.geometry.engine import (
    EngineError,
    GeometryResult,
    ModelInputs,
    RestraintLibrary,
    SampleError,
    SampleStatus,
)
from bxmesh.server.geometry.engine.export import export
from bxmesh.server.geometry.engine.fast import FastGeometry
from bxmesh.server.geometry.engine.model import BuiltModel, build
from tests.engine.wheel import PDB_1YJP, PDB_7N2L, wheel_bytes
from tests.restraints.plain import crystal_with_symmetry_bond

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def own(library: RestraintLibrary) -> Callable[[str], BuiltModel]:
    """Models that no other tests have, as cctbx remembers which pairs were near."""
    return cache(lambda path: build(ModelInputs(wheel_bytes(path)), library))


@pytest.fixture
def peptide(own: Callable[[str], BuiltModel]) -> BuiltModel:
    return own(PDB_1YJP)


def shaken(model: BuiltModel, samples: int, scale: float = 0.3) -> Floats:
    sites = model.atoms.sites
    return sites + np.random.default_rng(1).normal(scale=scale, size=(samples, *sites.shape))


def test_results_are_those_of_cctbx(own: Callable[[str], BuiltModel]) -> None:
    for path in (PDB_1YJP, PDB_7N2L):
        model = own(path)
        samples = shaken(model, 3)
        found = model.fast_geometry().evaluate(samples, per_term=True)
        for sites, ours in zip(samples, found, strict=True):
            theirs = model.geometry(sites, per_term=True)
            assert isinstance(ours, GeometryResult)
            assert ours.energy == pytest.approx(theirs.energy, rel=1e-9)
            assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-9)
            np.testing.assert_array_equal(ours.atom_mask, theirs.atom_mask)
            np.testing.assert_allclose(ours.gradients, theirs.gradients, atol=1e-7)
            assert ours.terms.keys() == {name for name, term in theirs.terms.items() if term.count}
            for name, term in ours.terms.items():
                assert term.energy == pytest.approx(theirs.terms[name].energy, rel=1e-9)
                assert term.count == theirs.terms[name].count or name == "nonbonded"
                mine, other = ours.term_gradients[name], theirs.term_gradients[name]
                np.testing.assert_allclose(mine, other, atol=1e-7)


def test_bonds_to_images_are_counted_as_cctbx_does(library: RestraintLibrary) -> None:
    model = build(ModelInputs(crystal_with_symmetry_bond()), library)
    sites = model.atoms.sites
    (ours,) = model.fast_geometry().evaluate(sites[np.newaxis])
    assert isinstance(ours, GeometryResult)
    theirs = model.geometry(sites)
    assert ours.terms["bond"].count == theirs.terms["bond"].count
    assert ours.terms["bond"].energy == pytest.approx(theirs.terms["bond"].energy, rel=1e-9)


def test_special_positions_are_left_to_cctbx(library: RestraintLibrary) -> None:
    special = build(ModelInputs(crystal_with_symmetry_bond(special=True)), library)
    general = build(ModelInputs(crystal_with_symmetry_bond()), library)
    assert not special.fast_geometry().equals_cctbx
    assert general.fast_geometry().equals_cctbx


def test_bad_samples_are_told_as_cctbx_does(own: Callable[[str], BuiltModel]) -> None:
    model = own(PDB_7N2L)
    samples = shaken(model, 6, 0.1)
    unrestrained = int(np.flatnonzero(~model.atom_mask)[0])
    samples[1, unrestrained, 2] = np.nan
    samples[2, 5, 0] = 2e4
    samples[3] = 7.0
    samples[4] *= 500.0 / np.abs(samples[4]).max() * 10
    expected = [SampleStatus.OK] * 6
    for number, sites in enumerate(samples):
        try:
            model.geometry(sites)
        except SampleError as error:
            expected[number] = error.status
    found = model.fast_geometry().evaluate(samples)
    statuses = [each.status if isinstance(each, SampleError) else SampleStatus.OK for each in found]
    assert statuses == expected
    assert statuses[1:5] == [
        SampleStatus.NON_FINITE,
        SampleStatus.OUT_OF_RANGE,
        SampleStatus.DEGENERATE,
        SampleStatus.EXPLODED,
    ]
    assert all(each.message for each in found if isinstance(each, SampleError))


def test_what_cannot_be_exported_is_asked_for_once(
    library: RestraintLibrary, monkeypatch: pytest.MonkeyPatch, peptide: BuiltModel
) -> None:
    model = build(ModelInputs(crystal_with_symmetry_bond()), library)
    asked = 0

    def refuse(_: BuiltModel) -> dict[str, Floats]:
        nonlocal asked
        asked += 1
        raise EngineError("RESTRAINTS_NOT_EXPORTABLE", "no place", field="macromolecule")

    monkeypatch.setattr("bxmesh.server.geometry.engine.model.export", refuse)
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            model.fast_geometry()
        assert caught.value.reason == "RESTRAINTS_NOT_EXPORTABLE"
    assert asked == 1


def test_memory_is_bounded(peptide: BuiltModel) -> None:
    restraints = Restraints(export(peptide))
    fast = FastGeometry(restraints)
    fast.evaluate(shaken(peptide, fast.batch + 10))
    most = fast.nbytes
    assert most < 1000 * 250_000
    fast.evaluate(shaken(peptide, 3 * fast.batch))
    assert fast.nbytes <= 2 * most
