"""Validation: equal to cctbx called plainly, named as people name residues, whatever the file holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import iotbx.pdb
import numpy as np
import pytest
from cctbx.array_family import flex
from libtbx import Auto, easy_pickle
from mmtbx.rotamer import rotamer_eval
from mmtbx.rotamer.n_dim_table import NDimTable
from mmtbx.validation import cbetadev, omegalyze, ramalyze

from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary, SampleError
from bxmesh.server.geometry.engine.model import BuiltModel, build
from bxmesh.server.geometry.engine.types import SampleStatus
from bxmesh.server.geometry.engine.validation import Validation
from bxmesh.server.geometry.engine.validation.checks import MOST_OUTLIERS
from bxmesh.server.geometry.engine.validation.naming import residue_name
from bxmesh.server.geometry.engine.validation.ramachandran import GRID, regions
from tests.engine.plain import PlainGeometry, labels
from tests.engine.wheel import PDB_1YJP, PDB_7N2L, wheel_bytes, wheel_file

UBIQUITIN = "iotbx/regression/secondary_structure/1ubf_cutted.pdb"
ALPHAFOLD = "mmtbx/regression/pdbs/AF_json_v3.pdb"
TRUNCATED = "mmtbx/geometry/tests/1ahq_trunc.pdb"
NUCLEIC = "iotbx/pdb/remediation/tst/dna-rna-test.pdb"

Built = Callable[[str], BuiltModel]


def shaken(model: BuiltModel, sigma: float) -> np.ndarray:
    sites = model.atoms.sites
    return sites + np.random.default_rng(0).normal(scale=sigma, size=sites.shape)


def from_lines(library: RestraintLibrary, *lines: str) -> BuiltModel:
    return build(ModelInputs("\n".join(lines).encode()), library)


def lines_1yjp() -> list[str]:
    return wheel_bytes(PDB_1YJP).decode().splitlines()


def of(found: Validation, check: str) -> list[Any]:
    return [outlier for outlier in found.outliers if outlier.check == check]


def moved_hierarchy(path: str, model: BuiltModel, sites: np.ndarray) -> Any:
    """What iotbx reads, with its atoms at sites in the order of the file."""
    hierarchy = iotbx.pdb.input(str(wheel_file(path))).construct_hierarchy()
    places = labels(model)
    order = [places["|".join(part.strip() for part in _parts(atom))] for atom in hierarchy.atoms()]
    hierarchy.atoms().set_xyz(flex.vec3_double(sites[order]))
    hierarchy.atoms().reset_i_seq()
    return hierarchy


def _parts(atom: Any) -> tuple[str, ...]:
    group = atom.parent()
    residue = group.parent()
    return (
        atom.name,
        group.altloc,
        group.resname,
        residue.parent().id,
        residue.resseq,
        residue.icode,
    )


@pytest.mark.parametrize(
    ("path", "sigma"), [(PDB_1YJP, 0.0), (TRUNCATED, 0.1), (PDB_7N2L, 0.05), (NUCLEIC, 0.0)]
)
def test_deviations_equal_those_of_cctbx(built: Built, path: str, sigma: float) -> None:
    model = built(path)
    sites = shaken(model, sigma)
    energies, _ = PlainGeometry(path, model).evaluate(sites)
    found = model.validate(sites)
    assert [each.term for each in found.deviations] == [
        "bond",
        "angle",
        "dihedral",
        "chirality",
        "planarity",
    ]
    for each in found.deviations:
        _, largest, rms, *_ = getattr(energies, f"{each.term}_deviations")()
        if each.term != "dihedral":
            assert each.count == getattr(energies, f"n_{each.term}_proxies")
        assert each.rms == pytest.approx(rms, rel=1e-6)
        assert each.max == pytest.approx(largest, rel=1e-6)
        # The energy of restraints without slack is the sum of the squared deviations over sigma.
        if each.term in ("bond", "angle", "chirality"):
            energy = getattr(energies, f"{each.term}_residual_sum")
            assert each.rms_z == pytest.approx(math.sqrt(energy / each.count), rel=1e-6)
    for each in found.deviations[:3]:
        links = {} if each.term == "dihedral" else {"origin_id": Auto}
        _, worst, rms_z, count = getattr(energies, f"{each.term}_deviations_z")(**links)
        assert each.count == count
        assert each.rms_z == pytest.approx(rms_z, rel=1e-6)
        listed = of(found, each.term)
        assert found.counts[each.term] == len(listed) or found.counts[each.term] > len(listed) > 0
        if listed:
            assert listed[0].score == pytest.approx(worst, rel=1e-6)


def test_outliers_are_those_of_cctbx(built: Built) -> None:
    model = built(UBIQUITIN)
    sites = shaken(model, 0.02)
    found = model.validate(sites)
    manager, at, _ = model._geometry.lend(sites)  # type: ignore[union-attr]
    energies = manager.energies_sites(sites_cart=at)
    for term in ("bond", "angle", "chirality"):
        theirs = getattr(energies, f"get_{term}_outliers")(at, sigma_threshold=4)
        assert found.counts[term] == len(theirs)
    dihedrals = manager.dihedral_proxies.proxy_select(origin_id=0)
    assert found.counts["dihedral"] == len(dihedrals.get_outliers(at, sigma_threshold=4)) > 0
    worst = max(of(found, "angle"), key=lambda outlier: outlier.score)
    assert of(found, "angle")[0] == worst
    # What is named is what deviates: the same atoms, measured again.
    names = worst.description.split(":")[0].removeprefix("angle ").split("–")
    assert len(worst.residues) == 1
    _, number, _ = worst.residues[0].split()
    atoms = model.atoms
    a, b, c = (
        sites[np.flatnonzero((atoms.resseq == number) & (atoms.name == name))[0]] for name in names
    )
    cosine = np.dot(a - b, c - b) / np.linalg.norm(a - b) / np.linalg.norm(c - b)
    assert math.degrees(math.acos(cosine)) == pytest.approx(worst.value, abs=1e-6)


def test_each_residue_has_its_worst_restraint(built: Built) -> None:
    model = built(PDB_1YJP)
    sites = shaken(model, 0.0)
    (place,) = np.flatnonzero((model.atoms.resseq == "4") & (model.atoms.name == "CB"))
    sites[place] += (0.3, 0.3, 0.3)
    found = model.validate(sites)
    residues = {each.residue: each for each in found.residues}
    # Waters have no restraints, and are not there.
    assert list(residues) == [
        "A 1 GLY",
        "A 2 ASN",
        "A 3 ASN",
        "A 4 GLN",
        "A 5 GLN",
        "A 6 ASN",
        "A 7 TYR",
    ]
    worst = max(found.outliers, key=lambda outlier: outlier.score * (outlier.check in _TERMS))
    assert max(found.residues, key=lambda each: each.worst_z).residue == "A 4 GLN"
    assert residues["A 4 GLN"].worst_z == worst.score
    assert residues["A 4 GLN"].term == worst.check


_TERMS = ("bond", "angle", "dihedral", "chirality", "planarity")


@pytest.mark.parametrize(("path", "sigma"), [(UBIQUITIN, 0.0), (ALPHAFOLD, 0.1)])
def test_the_backbone_is_judged_as_mmtbx_does(built: Built, path: str, sigma: float) -> None:
    model = built(path)
    sites = shaken(model, sigma)
    hierarchy = moved_hierarchy(path, model, sites)
    found = model.validate(sites)
    shares = {(share.check, share.name): share for share in found.shares}

    plot = ramalyze.ramalyze(pdb_hierarchy=hierarchy, outliers_only=False)
    assert shares["ramachandran", "favored"].count == plot.n_favored
    assert shares["ramachandran", "allowed"].count == plot.n_allowed
    assert (
        shares["ramachandran", "outlier"].count == found.counts["ramachandran"] == plot.n_outliers
    )
    assert shares["ramachandran", "outlier"].fraction == plot.n_outliers / plot.n_total
    theirs = {(r.chain_id.strip(), r.resseq.strip(), r.resname): r for r in plot.results}
    for point in found.ramachandran:
        chain, number, resname = point.residue.split()
        result = theirs.pop((chain, number, resname))
        assert (point.phi, point.psi) == pytest.approx((result.phi, result.psi), abs=1e-6)
        assert point.score == pytest.approx(result.score, abs=1e-6)
    assert not theirs

    bonds = omegalyze.omegalyze(pdb_hierarchy=hierarchy, nontrans_only=False)
    assert found.counts["omega"] == bonds.n_twisted_general() + bonds.n_twisted_proline() + (
        bonds.n_cis_general()
    )
    assert sum(s.count for s in found.shares if s.check == "omega") == len(bonds.results)

    beta = cbetadev.cbetadev(pdb_hierarchy=hierarchy, outliers_only=True)
    assert found.counts["cbeta"] == beta.n_outliers
    assert [each.value for each in of(found, "cbeta")] == pytest.approx(
        sorted((result.deviation for result in beta.results), reverse=True)[
            : len(of(found, "cbeta"))
        ]
    )


def test_phi_and_psi_are_measured_again(built: Built) -> None:
    model = built(PDB_1YJP)
    found = model.validate()
    atoms = model.atoms
    site = {
        (int(number), name): place
        for number, name, place in zip(atoms.resseq, atoms.name, atoms.sites, strict=True)
    }
    assert found.ramachandran[0].residue == "A 2 ASN"
    for point in found.ramachandran:
        at = int(point.residue.split()[1])
        phi = _torsion(site[at - 1, "C"], site[at, "N"], site[at, "CA"], site[at, "C"])
        psi = _torsion(site[at, "N"], site[at, "CA"], site[at, "C"], site[at + 1, "N"])
        assert (point.phi, point.psi) == pytest.approx((phi, psi), abs=1e-6)


def _torsion(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
    along = (c - b) / np.linalg.norm(c - b)
    first = (a - b) - np.dot(a - b, along) * along
    last = (d - c) - np.dot(d - c, along) * along
    return math.degrees(math.atan2(np.dot(np.cross(along, first), last), np.dot(first, last)))


def test_regions_are_those_of_the_points(built: Built) -> None:
    found = built(UBIQUITIN).validate()
    agree = Counter(
        regions()[point.residue_class][int((point.psi + 180) // GRID)][
            int((point.phi + 180) // GRID)
        ]
        == point.region[0]
        for point in found.ramachandran
    )
    # But for the squares that a border goes through.
    assert agree[True] > 0.9 * agree.total()


def test_close_contacts_are_close(built: Built) -> None:
    model = built(PDB_1YJP)
    atoms = model.atoms
    assert model.validate().counts["close_contact"] == 0
    sites = atoms.sites.copy()
    (carbon,) = np.flatnonzero((atoms.resseq == "4") & (atoms.name == "CB"))
    water = int(np.flatnonzero(atoms.resname == "HOH")[0])
    centre = sites[atoms.resname != "HOH"].mean(axis=0)
    outwards = (sites[carbon] - centre) / np.linalg.norm(sites[carbon] - centre)
    sites[water] = sites[carbon] + 2.5 * outwards
    contacts = [
        each
        for each in of(model.validate(sites), "close_contact")
        if "symmetry" not in each.description
    ]
    names = {"A 4 GLN", f"{atoms.chain[water]} {atoms.resseq[water]} HOH".strip()}
    (planted,) = (
        each
        for each in contacts
        if set(each.residues) == names and "CB" in each.description.split(":")[0].split()
    )
    assert planted.value == pytest.approx(2.5)
    assert planted.score == pytest.approx(planted.ideal - 2.5)
    # Whatever else is near the water is listed, too, but where a hydrogen bond may be.
    near = np.linalg.norm(sites - sites[water], axis=1) < 2.9
    near[water] = False
    near &= atoms.element == "C"
    assert len(contacts) == near.sum() > 1


def test_a_contact_with_a_symmetry_copy_counts_once(library: RestraintLibrary) -> None:
    water = "HETATM{:5d}  O   HOH A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 10.00           O"
    model = from_lines(
        library,
        "CRYST1   20.000   20.000   20.000  90.00  90.00  90.00 P 1",
        water.format(1, 1, 0.5, 5, 5),
        water.format(2, 2, 18.6, 5, 5),
        "END",
    )
    found = model.validate()
    (contact,) = of(found, "close_contact")
    assert found.counts["close_contact"] == 1
    assert contact.value == pytest.approx(1.9)
    assert "symmetry copy" in contact.description
    assert any("protein" in reason for reason in found.unavailable)
    assert not found.deviations
    assert not found.shares


def test_hydrogen_bonds_and_metals_are_no_contacts(library: RestraintLibrary) -> None:
    atom = "HETATM{:5d} {:4s} {:3s} A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 10.00          {:>2s}"
    model = from_lines(
        library,
        "CRYST1   40.000   40.000   40.000  90.00  90.00  90.00 P 1",
        atom.format(1, " O  ", "HOH", 1, 5, 5, 5, "O"),
        atom.format(2, " O  ", "HOH", 2, 7.55, 5, 5, "O"),
        atom.format(3, "ZN  ", " ZN", 3, 20, 20, 20, "ZN"),
        atom.format(4, " O  ", "HOH", 4, 22.1, 20, 20, "O"),
        "END",
    )
    assert model.validate().counts["close_contact"] == 0


def test_insertion_codes_and_alternative_locations_are_named(library: RestraintLibrary) -> None:
    lines = []
    for line in lines_1yjp():
        if line.startswith("ATOM") and line[22:26] == "   4":
            line = f"{line[:22]}   3B{line[27:]}"
        if (
            line.startswith("ATOM")
            and line[22:26] == "   6"
            and line[12:16].strip()
            not in (
                "N",
                "CA",
                "C",
                "O",
            )
        ):
            other = float(line[30:38]) + 0.6
            lines.append(f"{line[:16]}A{line[17:54]}  0.50{line[60:]}")
            line = f"{line[:16]}B{line[17:30]}{other:8.3f}{line[38:54]}  0.50{line[60:]}"
        lines.append(line)
    found = from_lines(library, *lines).validate()
    named = {residue for outlier in found.outliers for residue in outlier.residues}
    assert "A 6 ASN (B)" in named
    assert "A 6 ASN (A)" not in named
    assert [each.residue for each in found.residues][:5] == [
        "A 1 GLY",
        "A 2 ASN",
        "A 3 ASN",
        "A 3B GLN",
        "A 5 GLN",
    ]
    assert "A 3B GLN" in {point.residue for point in found.ramachandran}
    assert sum(s.count for s in found.shares if s.check == "ramachandran") == 5


def test_names_are_bounded() -> None:
    assert residue_name("A", "  52", "A", "ALA", "B") == "A 52A ALA (B)"
    assert residue_name(" ", "52", " ", "ALA") == "52 ALA"
    assert len(residue_name("A" * 100_000, "52", "", "ALA")) < 100


def test_a_chain_without_a_name_is_not_named_by_its_segment(library: RestraintLibrary) -> None:
    lines = [
        f"{line[:21]} {line[22:72]:<50}SEGX{line[76:]}" if line.startswith("ATOM") else line
        for line in lines_1yjp()
    ]
    found = from_lines(library, *lines).validate()
    assert found.ramachandran[0].residue == "2 ASN"
    assert found.residues[0].residue == "1 GLY"


CHIS = {
    1: "ser thr val cys",
    2: "asn asp his ile leu phetyr pro trp",
    3: "gln glu met",
    4: "arg lys",
}


def contours(folder: Path) -> Path:
    """Tables in the form of chem_data's, by which a side chain is bad whose chi1 is from 0 to 90."""
    folder.mkdir()
    (folder / "NO_UPDATE").touch()
    for angles, names in CHIS.items():
        for name in names.split():
            data, pickled = f"rota8000-{name}.data", f"rota8000-{name}.pickle"
            lines = [
                f'# Table name/description: "{name}"',
                f"# Number of dimensions: {angles}",
                "#",
            ]
            lines += [f"#   x{at}: 0.0 360.0 {4 if at else 36} true" for at in range(angles)]
            lines += ["# List of table coordinates and values. (Value is last)"]
            places = product(range(5, 360, 10), *((45, 135, 225, 315),) * (angles - 1))
            lines += [
                f"{' '.join(map(str, place))} {0.0 if place[0] < 90 else 0.9}" for place in places
            ]
            (folder / data).write_text("\n".join(lines) + "\n")
            with (folder / data).open() as table:
                easy_pickle.dump(str(folder / pickled), NDimTable.createFromText(table))
    return folder


def test_rotamers_where_their_contours_are(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = contours(tmp_path / "rotarama_data")
    monkeypatch.setattr(rotamer_eval, "find_rotarama_data_dir", lambda optional=False: str(folder))
    model = built(UBIQUITIN)
    found = model.validate()
    assert not [reason for reason in found.unavailable if reason.startswith("rotamers")]
    atoms = model.atoms
    site = {
        (int(number), name): place
        for number, name, place in zip(atoms.resseq, atoms.name, atoms.sites, strict=True)
    }
    listed = {
        int(each.residues[0].split()[1]) for each in found.outliers if each.check == "rotamer"
    }
    judged = 0
    for number in {number for number, name in site if (number, "CG") in site}:
        # But for prolines, whose tables mmtbx reads in their own way, and what lies near a border.
        chi = _torsion(*(site[number, name] for name in ("N", "CA", "CB", "CG")))
        if (number, "CD") in site and np.linalg.norm(site[number, "CD"] - site[number, "N"]) < 1.7:
            continue
        if 12 < chi < 78:
            assert number in listed
            judged += 1
        elif not -12 < chi < 102:
            assert number not in listed
    assert judged > 10
    (share,) = (s for s in found.shares if (s.check, s.name) == ("rotamer", "outlier"))
    assert share.count == found.counts["rotamer"] == len(listed)


def test_what_has_no_protein_says_so(built: Built) -> None:
    found = built(NUCLEIC).validate()
    assert not found.shares
    assert not found.ramachandran
    (reason,) = (each for each in found.unavailable if "protein" in each)
    assert reason.startswith("Ramachandran, omega, C-beta deviations:")
    assert "ramachandran" not in found.counts
    assert found.deviations[0].count > 100


def test_what_is_missing_here_is_named(built: Built, crystal: BuiltModel) -> None:
    found = crystal.validate()
    assert any(each.startswith("rotamers:") for each in found.unavailable)
    assert any(each.startswith("clashscore:") for each in found.unavailable)
    assert any(each.startswith("CaBLAM, Rama-Z:") for each in found.unavailable)
    # Scales are determined where the model is.
    assert found.xray is not None
    own = crystal.xray()
    assert found.xray.r_work == pytest.approx(own.r_work)
    worse = crystal.validate(shaken(crystal, 0.1)).xray
    assert worse is not None
    assert worse.r_work > found.xray.r_work
    assert crystal.xray().r_work == own.r_work
    assert built(PDB_7N2L).validate().xray is None


def test_a_residue_without_restraints_costs_only_these(library: RestraintLibrary) -> None:
    lines = lines_1yjp()
    lines.insert(
        -2, "HETATM 9999  C1  QQQ A 900      30.000  30.000  30.000  1.00 10.00           C"
    )
    found = from_lines(library, *lines).validate()
    assert not found.deviations
    assert any("QQQ" in reason for reason in found.unavailable)
    assert len(found.ramachandran) == 5


def test_bad_coordinates_are_refused(built: Built) -> None:
    model = built(PDB_1YJP)
    sites = shaken(model, 0.0)
    sites[0] = np.nan
    with pytest.raises(SampleError) as raised:
        model.validate(sites)
    assert raised.value.status is SampleStatus.NON_FINITE
    with pytest.raises(SampleError) as raised:
        model.validate(shaken(model, 300.0))
    assert raised.value.status is SampleStatus.EXPLODED
    # And the model is as good as before.
    assert model.validate().counts["bond"] == 0


def test_what_has_no_value_is_named(built: Built) -> None:
    model = built(PDB_1YJP)
    sites = shaken(model, 0.0)
    everything = {each.term: each.count for each in model.validate().deviations}
    sites[:8] = sites[0]
    found = model.validate(sites)
    terms = {each.term: each.count for each in found.deviations}
    for term in ("angle", "dihedral"):
        (reason,) = (each for each in found.unavailable if f"term {term}:" in each)
        assert everything[term] == terms[term] + int(reason.split()[0]) > terms[term]
    # All in one line.
    sites[:, 1:] = 0.0
    found = model.validate(sites)
    assert "dihedral" not in {each.term for each in found.deviations}
    assert all(math.isfinite(each.rms + each.rms_z) for each in found.deviations)


def test_the_list_is_bounded_and_every_check_is_in_it(built: Built) -> None:
    model = built(ALPHAFOLD)
    found = model.validate(shaken(model, 0.15))
    assert len(found.outliers) == MOST_OUTLIERS < sum(found.counts.values())
    wanted = {check for check, count in found.counts.items() if count}
    assert {outlier.check for outlier in found.outliers[: len(wanted)]} == wanted
    for check in ("bond", "angle", "close_contact", "cbeta", "omega"):
        scores = [outlier.score for outlier in of(found, check)]
        assert scores == sorted(scores, reverse=True)
