"""Macromolecules that cannot be used are refused in clear words."""

import gzip
import os

import pytest

from bxmesh.server.geometry.engine import (
    EngineError,
    ModelInputs,
    RestraintLibrary,
    files,
    macromolecule,
)
from bxmesh.server.geometry.engine.model import build
from tests.engine.wheel import MTZ_7N2L, PDB_1YJP, PDB_7N2L, inputs, wheel_bytes

PDB = wheel_bytes(PDB_1YJP)
ATOM = PDB[PDB.index(b"\nATOM") + 1 :].split(b"\n")[0]
CIF = wheel_bytes("mmtbx/regression/pdbs/AF_json_v3.cif")


def without(text: bytes, start: bytes) -> bytes:
    return b"\n".join(line for line in text.split(b"\n") if not line.startswith(start))


BAD = {
    "empty": (b"", "EMPTY_FILE"),
    "blank": (b" \n\n", "EMPTY_FILE"),
    "random bytes": (bytes(range(256)) * 8, "MACROMOLECULE_UNREADABLE"),
    "words": (b"HEADER    NOTHING\nREMARK no atoms here\n", "NO_ATOMS"),
    "cut inside an atom": (PDB[: PDB.index(ATOM) + 40], "MACROMOLECULE_UNREADABLE"),
    "letters for a coordinate": (
        PDB.replace(ATOM, ATOM[:30] + b"abc" + ATOM[33:]),
        "MACROMOLECULE_UNREADABLE",
    ),
    "not a number": (
        PDB.replace(ATOM, ATOM[:30] + b"     nan" + ATOM[38:]),
        "MACROMOLECULE_UNREADABLE",
    ),
    "same atom twice": (PDB.replace(ATOM, ATOM + b"\n" + ATOM), "DUPLICATE_ATOMS"),
    "two models": (
        b"MODEL        1\n" + ATOM + b"\nENDMDL\nMODEL        2\n" + ATOM + b"\nENDMDL\nEND\n",
        "MULTIPLE_MODELS",
    ),
    "broken gzip": (gzip.compress(PDB)[:-200], "BROKEN_GZIP"),
    "mmCIF without atoms": (b"data_x\n_cell.length_a 10\n", "NO_ATOMS"),
    "mmCIF without a column": (
        CIF.replace(b"_atom_site.Cartn_x", b"_atom_site.Cartn_q"),
        "MACROMOLECULE_UNREADABLE",
    ),
    "mmCIF cut in the loop": (CIF[: len(CIF) // 2], "MACROMOLECULE_UNREADABLE"),
    "mmCIF with an empty loop": (b"data_x\nloop_\n_atom_site.id", "MACROMOLECULE_UNREADABLE"),
    "mmCIF with a loop of no items": (b"data_x\nloop_ 1 2", "MACROMOLECULE_UNREADABLE"),
    "dictionary": (b"data_comp_X\n_chem_comp_atom.atom_id C1\n", "NO_ATOMS"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused(library: RestraintLibrary, name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(EngineError) as caught:
        build(ModelInputs(data), library)
    assert caught.value.reason == reason
    assert caught.value.field == "macromolecule"
    assert len(caught.value.message) > 20


def test_random_bytes_are_refused(library: RestraintLibrary) -> None:
    for _ in range(20):
        with pytest.raises(EngineError):
            build(ModelInputs(os.urandom(2000)), library)


def test_bomb_is_refused() -> None:
    bomb = gzip.compress(bytes(3_000_000))
    with pytest.raises(EngineError) as caught:
        files.decompress(bomb, field="macromolecule", limit=1_000_000)
    assert caught.value.reason == "FILE_TOO_LARGE"


@pytest.mark.parametrize("path", [PDB_1YJP, "mmtbx/regression/pdbs/AF_json_v3.cif"])
def test_gzipped_file_is_read(path: str) -> None:
    plain = macromolecule.read(wheel_bytes(path))
    packed = macromolecule.read(gzip.compress(wheel_bytes(path)))
    assert (plain.atoms.sites == packed.atoms.sites).all()


def test_duplicate_atoms_are_named(library: RestraintLibrary) -> None:
    with pytest.raises(EngineError) as caught:
        build(ModelInputs(BAD["same atom twice"][0]), library)
    assert len(caught.value.subjects) == 1
    assert "GLY A   1" in caught.value.subjects[0]


def test_missing_columns_are_named(library: RestraintLibrary) -> None:
    with pytest.raises(EngineError) as caught:
        build(ModelInputs(BAD["mmCIF without a column"][0]), library)
    assert caught.value.subjects == ("Cartn_x",)


def test_summary(library: RestraintLibrary) -> None:
    summary = build(inputs(PDB_1YJP), library).summary
    assert (summary.atoms, summary.residues, summary.chains) == (66, 14, 2)
    assert summary.space_group == "P 1 21 1"
    assert summary.unit_cell == pytest.approx((21.937, 4.866, 23.477, 90, 107.08, 90))
    assert summary.data is None
    assert not summary.unknown_residues


@pytest.mark.parametrize("cell", [b"", b"CRYST1" + 3 * b"    1.000" + 3 * b"  90.00" + b" P 1"])
def test_without_crystal_symmetry_geometry_works(library: RestraintLibrary, cell: bytes) -> None:
    pdb = cell + b"\n" + without(without(PDB, b"CRYST1"), b"SCALE")
    model = build(ModelInputs(pdb), library)
    assert model.summary.unit_cell is None
    assert model.geometry().energy > 0
    with pytest.raises(EngineError) as caught:
        model.xray()
    assert caught.value.reason == "NO_REFLECTIONS"


def test_without_crystal_symmetry_reflections_are_refused(library: RestraintLibrary) -> None:
    pdb = without(wheel_bytes(PDB_7N2L), b"CRYST1")
    with pytest.raises(EngineError) as caught:
        build(ModelInputs(pdb, wheel_bytes(MTZ_7N2L)), library)
    assert caught.value.reason == "NO_CRYSTAL_SYMMETRY"


def test_unknown_residue_is_named_and_a_dictionary_helps(library: RestraintLibrary) -> None:
    pdb = wheel_bytes("iotbx/regression/data/2ERL.pdb")
    model = build(ModelInputs(pdb), library)
    assert model.summary.unknown_residues == ("EOH",)
    with pytest.raises(EngineError) as caught:
        model.geometry()
    assert caught.value.reason == "UNKNOWN_RESIDUES"
    assert caught.value.subjects == ("EOH",)
    helped = build(ModelInputs(pdb, restraints=(ETHANOL,)), library)
    assert helped.summary.unknown_residues == ()
    assert helped.geometry().energy > 0
    # What one model brings is not known to the next.
    assert build(ModelInputs(pdb), library).summary.unknown_residues == ("EOH",)


def test_unknown_atom_is_named(library: RestraintLibrary) -> None:
    pdb = PDB.replace(ATOM, ATOM[:12] + b" XX " + ATOM[16:])
    with pytest.raises(EngineError) as caught:
        build(ModelInputs(pdb), library).geometry()
    assert caught.value.reason == "UNKNOWN_ATOMS"
    assert len(caught.value.subjects) == 1


def test_kept_hydrogens_are_refused_by_name(library: RestraintLibrary) -> None:
    model = build(inputs(PDB_7N2L, hydrogens="keep"), library)
    assert model.summary.hydrogens_stripped == 0
    with pytest.raises(EngineError) as caught:
        model.geometry()
    assert caught.value.reason in ("UNKNOWN_ATOMS", "RESTRAINTS_NOT_BUILT")


@pytest.mark.parametrize(
    "dictionary",
    [
        b"",
        b"\0\1\2",
        b"hello",
        b"data_comp_X\nloop_\n_chem_comp_atom.atom_id",
        PDB,
        b"data_comp_X\n_chem_comp_bond.value_dist abc\n_chem_comp_bond.atom_id_1 C\n",
    ],
)
def test_bad_dictionary_is_refused(library: RestraintLibrary, dictionary: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        build(ModelInputs(PDB, restraints=(dictionary,)), library)
    assert caught.value.reason in ("RESTRAINTS_UNREADABLE", "EMPTY_FILE")
    assert caught.value.field == "restraints"


ETHANOL = b"""data_comp_list
loop_
_chem_comp.id
_chem_comp.three_letter_code
_chem_comp.name
_chem_comp.group
_chem_comp.number_atoms_all
_chem_comp.number_atoms_nh
_chem_comp.desc_level
EOH EOH ethanol NON-POLYMER 3 3 .
data_comp_EOH
loop_
_chem_comp_atom.comp_id
_chem_comp_atom.atom_id
_chem_comp_atom.type_symbol
_chem_comp_atom.type_energy
_chem_comp_atom.partial_charge
EOH C1 C CH2 0.0
EOH C2 C CH3 0.0
EOH O O OH1 0.0
loop_
_chem_comp_bond.comp_id
_chem_comp_bond.atom_id_1
_chem_comp_bond.atom_id_2
_chem_comp_bond.type
_chem_comp_bond.value_dist
_chem_comp_bond.value_dist_esd
EOH C1 C2 single 1.513 0.020
EOH C1 O single 1.430 0.020
loop_
_chem_comp_angle.comp_id
_chem_comp_angle.atom_id_1
_chem_comp_angle.atom_id_2
_chem_comp_angle.atom_id_3
_chem_comp_angle.value_angle
_chem_comp_angle.value_angle_esd
EOH C2 C1 O 109.5 3.0
"""
