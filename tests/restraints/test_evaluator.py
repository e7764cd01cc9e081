"""The evaluators themselves: gradients, symmetry, degenerate and bad coordinates, repeatability."""

from collections.abc import Callable

import numpy as np
import pytest

from bxmesh.restraints import TERMS, Evaluator, RestraintsError, Status
from tests.engine.wheel import PDB_1YJP, PDB_7N2L
from tests.restraints.backends import Backend
from tests.restraints.plain import Exported, Floats, crystal_with_symmetry_bond

Export = Callable[..., Exported]

random = np.random.default_rng(7)


def jittered(exported: Exported, *shape: int, by: float = 0.3) -> Floats:
    return exported.sites + random.normal(0, by, (*shape, *exported.sites.shape))


@pytest.mark.parametrize("source", [PDB_1YJP, crystal_with_symmetry_bond()], ids=["1yjp", "bond"])
@pytest.mark.parametrize("isolated", [False, True])
def test_finite_differences(
    exported: Export, backend: Backend, source: str | bytes, isolated: bool
) -> None:
    model = exported(source)
    evaluator = backend(model.restraints, isolated=isolated)
    sites, step = jittered(model), random.normal(0, 1, model.sites.shape)
    result = evaluator(sites, per_term=True)
    np.testing.assert_allclose(
        sum(result.term_gradients.values()), result.gradients, rtol=1e-12, atol=1e-9
    )
    ahead, behind = (evaluator(sites + h * step) for h in (1e-6, -1e-6))
    for name in TERMS:
        slope = (ahead.terms[name][0] - behind.terms[name][0]) / 2e-6
        along = (result.term_gradients[name][0] * step).sum()
        assert along == pytest.approx(slope, rel=1e-5, abs=1e-3), name


def test_isolated_is_invariant(exported: Export, backend: Backend) -> None:
    model = exported(PDB_1YJP)
    evaluator = backend(model.restraints, isolated=True)
    sites = jittered(model)
    rotation, _ = np.linalg.qr(random.normal(0, 1, (3, 3)))
    rotation *= np.linalg.det(rotation)
    here, there = evaluator(sites), evaluator(sites @ rotation.T + [3.0, -40.0, 12.5])
    for name in TERMS:
        np.testing.assert_allclose(there.terms[name], here.terms[name], rtol=1e-9)
    scale = np.abs(here.gradients).max()
    np.testing.assert_allclose(
        there.gradients, here.gradients @ rotation.T, rtol=0, atol=1e-8 * scale
    )
    assert backend(model.restraints)(sites).terms["nonbonded"] > here.terms["nonbonded"]


def test_lattice_is_invariant(exported: Export, backend: Backend) -> None:
    model = exported(PDB_1YJP)
    evaluator = backend(model.restraints)
    sites = jittered(model)
    moved = sites + model.restraints["orthogonalization"] @ [3.0, -7.0, 2.0]
    np.testing.assert_allclose(evaluator(moved).energies, evaluator(sites).energies, rtol=1e-9)


def test_what_went_before_does_not_matter(exported: Export) -> None:
    model = exported(PDB_1YJP)
    batch = jittered(model, 8)
    batch[4:] = batch[:1] + random.normal(0, 0.02, (4, *model.sites.shape))
    walking = Evaluator(model.restraints, threads=1)
    steps = [walking(sites) for sites in batch]
    together = Evaluator(model.restraints, threads=4)(batch)
    narrow = Evaluator(model.restraints, buffer=0.0)(batch)
    for number, step in enumerate(steps):
        for other in (together, narrow):
            assert step.energies[0] == other.energies[number]
            np.testing.assert_array_equal(step.gradients[0], other.gradients[number])


def degenerate(model: Exported) -> dict[str, Floats]:
    sites = model.sites
    bond = model.restraints["bond_atoms"][3]
    together, line, flat, all_in_one = (sites.copy() for _ in range(4))
    together[bond[1]] = together[bond[0]]
    line[:, 1:] = 0
    flat[:, 2] = 0
    all_in_one[:] = sites[0]
    return {"coincident": together, "in line": line, "flat": flat, "all in one": all_in_one}


@pytest.mark.parametrize("name", ["coincident", "in line", "flat", "all in one"])
def test_degenerate_geometry_has_gradients(exported: Export, backend: Backend, name: str) -> None:
    model = exported(PDB_7N2L)
    sites = degenerate(model)[name]
    result = backend(model.restraints)(sites)
    assert result.statuses == (Status.OK,)
    assert np.isfinite(result.gradients).all()
    terms, gradients = model.evaluate(sites)
    for term in TERMS:
        # By their cosines cctbx knows angles of 0° and 180° only to a millionth of a degree.
        digits = 1e-8 if term in ("angle", "dihedral") else 1e-9
        np.testing.assert_allclose(result.terms[term][0], terms[term], rtol=digits, atol=1e-12)
    # Around a line every plane fits as well as another, so that there are many right gradients.
    if name != "in line":
        scale = np.abs(gradients).max()
        np.testing.assert_allclose(result.gradients[0], gradients, rtol=0, atol=1e-9 * scale)


def test_each_sample_has_its_status(exported: Export, backend: Backend) -> None:
    model = exported(PDB_7N2L)
    batch = jittered(model, 6)
    [(_, first), *_, (_, last)] = model.restraints["bond_atoms"]
    batch[1, first, 2] = np.nan
    batch[2, last, 0] = -np.inf
    batch[3, first, 1] = 2e4
    batch[4, last] += 400
    result = backend(model.restraints)(batch)
    assert [status.name for status in result.statuses] == [
        "OK",
        "NON_FINITE",
        "NON_FINITE",
        "OUT_OF_RANGE",
        "EXPLODED",
        "OK",
    ]
    good = np.array([status is Status.OK for status in result.statuses])
    alone = backend(model.restraints)(batch[good])
    rounding = getattr(backend, "batch_rounding", 0.0)
    np.testing.assert_allclose(result.energies[good], alone.energies, rtol=rounding, atol=0)
    largest = np.abs(alone.gradients).max()
    np.testing.assert_allclose(
        result.gradients[good], alone.gradients, rtol=0, atol=rounding * largest
    )
    assert np.isnan(result.energies[~good]).all()
    assert not result.gradients[~good].any()


def test_atoms_without_restraints_do_not_matter(exported: Export, backend: Backend) -> None:
    model = exported(PDB_7N2L)
    mask = model.restraints["atom_mask"]
    assert not mask.all()
    sites = model.sites.copy()
    sites[~mask] = np.nan
    result = backend(model.restraints)(sites)
    np.testing.assert_array_equal(result.energies, backend(model.restraints)(model.sites).energies)
    assert not result.gradients[0, ~mask].any()


def test_millions_of_pairs_are_not_looked_at(exported: Export, backend: Backend) -> None:
    model = exported("mmtbx/regression/pdbs/pae.pdb")
    pressed = model.sites.mean(axis=0) + 1e-3 * (model.sites - model.sites.mean(axis=0))
    result = backend(model.restraints)(np.stack([pressed, model.sites]))
    assert result.statuses == (Status.CROWDED, Status.OK)


@pytest.mark.parametrize(
    ("coordinates", "reason"),
    [
        (np.zeros((66, 3), dtype=np.int64), "COORDINATES_DTYPE"),
        (np.zeros((65, 3)), "COORDINATES_SHAPE"),
        (np.zeros((0, 66, 3)), "COORDINATES_SHAPE"),
        (np.zeros((2, 2, 66, 3)), "COORDINATES_SHAPE"),
    ],
)
def test_other_arrays_are_refused(
    exported: Export, backend: Backend, coordinates: Floats, reason: str
) -> None:
    evaluator = backend(exported(PDB_1YJP).restraints)
    with pytest.raises(RestraintsError) as caught:
        evaluator(coordinates)
    assert caught.value.reason == reason
