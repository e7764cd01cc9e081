"""Exported restraints evaluated without cctbx are those of its `energies_sites`, term by term."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from cctbx import geometry_restraints as cctbx
from cctbx.array_family import flex

from bxmesh.restraints import TERMS, Restraints, Status
from tests.engine.test_macromolecule import ETHANOL
from tests.engine.wheel import PDB_1YJP, wheel_bytes
from tests.restraints.backends import BACKENDS, Backend
from tests.restraints.plain import Exported, Floats, crystal_with_symmetry_bond, moved

Export = Callable[..., Exported]

MODELS = {
    "protein, P1": "mmtbx/regression/pdbs/7n2l.pdb",
    "hydrogens, P21": "mmtbx/regression/pdbs/1yjp_h.pdb",
    "P61": "iotbx/regression/secondary_structure/1ubf_cutted.pdb",
    "predicted, without a cell": "mmtbx/regression/pdbs/AF_json_v3.pdb",
    "DNA and RNA": "iotbx/pdb/remediation/tst/dna-rna-test.pdb",
    "protein with DNA": "iotbx/pdb/remediation/tst/protein-dna-test.pdb",
    "iron and sulfur": "mmtbx/regression/pdbs/Fe_1brf_snip_reduced.pdb",
    "alternatives, atoms in line": "mmtbx/regression/pdbs/1ucs_cutted_xyz_rounded.pdb",
    "disulfide": "iotbx/regression/secondary_structure/3jd6_noh.pdb",
    "magnesium": "iotbx/pdb/remediation/tst/mg_tst.pdb",
}


def in_line(restraints: Restraints, sites: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Returns the atoms of angles and dihedrals with atoms in line but for rounding.

    Their gradient, and the energy of the dihedrals, is noise.
    """
    noisy = []
    for atoms in (restraints["angle_atoms"], restraints["dihedral_atoms"]):
        steps = np.diff(sites[atoms], axis=1)
        across = np.linalg.norm(np.cross(steps[:, :-1], steps[:, 1:]), axis=2)
        lengths = np.linalg.norm(steps, axis=2)
        straight = across < 1e-10 * lengths[:, :-1] * lengths[:, 1:]
        noisy.append(atoms[straight.any(axis=1)].ravel())
    return np.isin(np.arange(len(sites)), np.concatenate(noisy))


def assert_same(
    exported: Exported, restraints: Restraints, places: Iterable[Floats], tolerance: float = 1e-9
) -> None:
    evaluators = {name: backend(restraints) for name, backend in BACKENDS.items()}
    for sites in places:
        terms, gradients = exported.evaluate(sites)
        for backend, evaluator in evaluators.items():
            by_cosine = backend == "numba"
            sure = np.full(len(sites), True) if by_cosine else ~in_line(restraints, sites)
            scale = np.abs(gradients[sure]).max(initial=0)
            result = evaluator(sites)
            assert result.statuses == (Status.OK,)
            for name in TERMS:
                if name == "dihedral" and not sure.all():
                    continue
                np.testing.assert_allclose(
                    result.terms[name][0],
                    terms[name],
                    # Of atoms in line cctbx knows an angle only to a millionth of a degree.
                    rtol=1e-8 if name == "angle" and not by_cosine else tolerance,
                    atol=1e-12,
                    err_msg=f"{backend}, {name}",
                )
            if sure.all():
                np.testing.assert_allclose(result.energies[0], sum(terms.values()), rtol=tolerance)
            np.testing.assert_allclose(
                result.gradients[0, sure],
                gradients[sure],
                rtol=0,
                atol=tolerance * scale + 1e-12,
                err_msg=backend,
            )


@pytest.mark.parametrize("path", MODELS.values(), ids=MODELS)
def test_models(exported: Export, path: str) -> None:
    model = exported(path)
    assert_same(model, model.restraints, moved(model.sites))


@pytest.mark.parametrize(
    ("cell", "group"),
    [
        ((30, 30, 40, 90, 90, 90), "P 43 21 2"),
        ((25, 30, 35, 90, 90, 90), "C 2 2 21"),
        ((40, 40, 30, 90, 90, 120), "H 3"),
        ((20, 20, 30, 90, 90, 120), "P 61 2 2"),
        ((70, 70, 70, 90, 90, 90), "F 41 3 2"),
        ((12, 9, 11, 70, 80, 100), "P 1"),
    ],
)
def test_crystals(exported: Export, cell: tuple[int, ...], group: str) -> None:
    """Models that overlap their images, in cells that are smaller than they are."""
    lines = wheel_bytes(PDB_1YJP).decode().splitlines()
    a, b, c, alpha, beta, gamma = cell
    lines = [
        f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} {group}",
        *(line for line in lines if line.startswith(("ATOM", "HETATM", "TER", "END"))),
    ]
    model = exported("\n".join(lines).encode())
    assert_same(model, model.restraints, moved(model.sites))


@pytest.mark.parametrize("path", [MODELS["protein, P1"], MODELS["P61"]])
def test_float32(exported: Export, path: str) -> None:
    """Rounded coordinates have the gradients that cctbx has at the rounded coordinates."""
    model = exported(path)
    processor, module = (backend(model.restraints) for backend in BACKENDS.values())
    for sites in moved(model.sites):
        rounded = sites.astype(np.float32)
        terms, gradients = model.evaluate(rounded.astype(np.float64))
        scale = np.abs(gradients).max()
        # The module computes in the type of the coordinates.
        for evaluator, digits in ((processor, 1e-9), (module, 1e-4)):
            result = evaluator(rounded)
            assert result.gradients.dtype == np.float32
            np.testing.assert_allclose(result.energies[0], sum(terms.values()), rtol=digits)
            within = max(digits, 1e-6) * scale
            np.testing.assert_allclose(result.gradients[0], gradients, rtol=0, atol=within)
            for name in TERMS:
                np.testing.assert_allclose(result.terms[name][0], terms[name], rtol=digits)


def test_ligand_with_a_dictionary(exported: Export) -> None:
    model = exported("iotbx/regression/data/2ERL.pdb", ETHANOL)
    assert len(np.unique(model.restraints["nonbonded_conformer"])) > 2
    assert_same(model, model.restraints, moved(model.sites))


def test_bond_to_an_image(exported: Export) -> None:
    model = exported(crystal_with_symmetry_bond())
    assert len(model.restraints["symmetry_bond_atoms"]) == 1
    near = [sites for sites in moved(model.sites) if np.abs(sites - model.sites).max() < 40]
    assert len(near) == 7
    assert_same(model, model.restraints, near)


def test_atoms_on_special_positions(exported: Export) -> None:
    """They stay on their axis, whatever the others do."""
    model = exported(crystal_with_symmetry_bond(special=True))
    special = model.restraints["special_atoms"]
    assert len(special) == 2
    held = np.isin(np.arange(len(model.sites)), special)[:, np.newaxis]
    places = [
        np.where(held, model.sites, sites)
        for sites in moved(model.sites)
        if np.abs(sites - model.sites).max() < 40
    ]
    assert_same(model, model.restraints, places)


def test_bond_to_an_image_torn_apart(exported: Export, backend: Backend) -> None:
    model = exported(crystal_with_symmetry_bond())
    sites = model.sites + np.array([50.0, 0, 0])
    with pytest.raises(RuntimeError, match="max_reasonable_bond_distance"):
        model.evaluate(sites)
    assert backend(model.restraints)(sites).statuses == (Status.EXPLODED,)
    alone = backend(model.restraints, isolated=True)(sites)
    assert alone.statuses == (Status.OK,)
    assert alone.terms["bond"] < 1e4


def test_every_parameter(exported: Export) -> None:
    """Slack, top-out, limits, harmonic dihedrals, both signs and other repulsion at once."""
    # A line more, so that it is a model of its own.
    model = exported(wheel_bytes(MODELS["hydrogens, P21"]) + b"\n")
    manager = model.manager
    for number, row in enumerate(manager.bond_params_table):
        for parameters in row.values():
            parameters.slack = 0.02 * (number % 3)
            parameters.top_out = number % 2 == 0
            parameters.limit = 0.3
    for number, proxy in enumerate(manager.angle_proxies):
        proxy.slack = float(number % 4)
    dihedrals = cctbx.shared_dihedral_proxy()
    for number, proxy in enumerate(manager.dihedral_proxies):
        dihedrals.append(
            cctbx.dihedral_proxy(
                i_seqs=proxy.i_seqs,
                angle_ideal=proxy.angle_ideal,
                weight=proxy.weight,
                periodicity=(-1, 0, 1, 2, 3, 5)[number % 6],
                alt_angle_ideals=((), (-65.0, 170.5))[number % 2] or None,
                limit=(-1.0, 20.0)[number % 3 == 0],
                top_out=number % 3 == 0,
                slack=(0.0, 5.0)[number % 5 == 0],
            )
        )
    manager.dihedral_proxies = dihedrals
    chiralities = cctbx.shared_chirality_proxy()
    for number, proxy in enumerate(manager.chirality_proxies):
        chiralities.append(
            cctbx.chirality_proxy(
                i_seqs=proxy.i_seqs,
                volume_ideal=abs(proxy.volume_ideal),
                both_signs=number % 2 == 0,
                weight=proxy.weight,
            )
        )
    manager.chirality_proxies = chiralities
    for irexp, rexp in ((1, 4), (2, 3), (1.5, 2.5), (4, 1)):
        manager.nonbonded_function = cctbx.prolsq_repulsion_function(
            c_rep=16, k_rep=0.9, irexp=irexp, rexp=rexp
        )
        assert_same(model, model.export_again(), moved(model.sites))


@pytest.mark.parametrize("top_out", [False, True])
@pytest.mark.parametrize(("ideal", "slack"), [(0.0, 0.0), (10.0, 5.0)])
def test_parallel_planes(
    exported: Export, backend: Backend, ideal: float, slack: float, top_out: bool
) -> None:
    """cctbx gives the second plane no gradient; the first has the same."""
    model = exported(MODELS["protein, P1"])
    planes = model.manager.planarity_proxies
    first, second = (list(planes[number].i_seqs) for number in (0, 4))
    places = np.array(model._places)
    tensors = dict(model.restraints.tensors)
    for side, members in (("first", first), ("second", second)):
        tensors[f"parallelity_{side}_offsets"] = np.array([0, len(members)], dtype=np.int32)
        tensors[f"parallelity_{side}_atoms"] = places[members].astype(np.int32)
    for name, value in {"ideal": ideal, "weight": 300.0, "slack": slack, "limit": 1.5}.items():
        tensors[f"parallelity_{name}"] = np.array([value])
    tensors["parallelity_top_out"] = np.array([top_out])
    tensors["parallelity_origin"] = np.zeros(1, dtype=np.int32)
    evaluator = backend(Restraints(tensors))
    proxy = cctbx.parallelity_proxy(
        i_seqs=flex.size_t(first),
        j_seqs=flex.size_t(second),
        weight=300.0,
        target_angle_deg=ideal,
        slack=slack,
        limit=1.5,
        top_out=top_out,
    )
    for sites in moved(model.sites):
        plain = cctbx.parallelity(sites_cart=flex.vec3_double(sites[places]), proxy=proxy)
        result = evaluator(sites, per_term=True)
        assert result.terms["parallelity"][0] == pytest.approx(plain.residual(), rel=1e-9)
        gradients = result.term_gradients["parallelity"][0]
        expected = np.array(plain.gradients())[: len(first)]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradients[places[first]], expected, atol=1e-6 * scale)
        step = np.random.default_rng(2).normal(0, 1, sites.shape)
        energies = [evaluator(sites + h * step).terms["parallelity"][0] for h in (1e-5, -1e-5)]
        slope = (energies[0] - energies[1]) / 2e-5
        assert (gradients * step).sum() == pytest.approx(slope, rel=1e-5, abs=1e-6 * scale)
