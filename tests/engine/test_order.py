"""The order of atoms: what goes in and comes out follows the file, whatever cctbx does."""

import re

import numpy as np
import pytest

from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary
from bxmesh.server.geometry.engine.model import build
from tests.engine.plain import labels
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, inputs, wheel_bytes

WITH_ALTLOCS = "mmtbx/geometry/tests/1ahq_trunc.pdb"


def shuffled(pdb: bytes, seed: int) -> bytes:
    """Shuffle the atoms within each residue, and give the alternative ones in turns."""
    lines = pdb.decode().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM  ", "HETATM"))]
    residues: dict[str, list[str]] = {}
    for line in atoms:
        residues.setdefault(line[20:27], []).append(line)
    generator = np.random.default_rng(seed)
    mixed = [
        residue[place]
        for residue in residues.values()
        for place in generator.permutation(len(residue))
    ]
    header = [line for line in lines if line.startswith("CRYST1")]
    return "\n".join([*header, *mixed, "END", ""]).encode()


@pytest.mark.parametrize("path", [WITH_ALTLOCS, PDB_7N2L])
def test_shuffled_file_gives_shuffled_results(library: RestraintLibrary, path: str) -> None:
    pdb = wheel_bytes(path)
    straight = build(ModelInputs(pdb), library)
    mixed = build(ModelInputs(shuffled(pdb, seed=3)), library)
    places = labels(straight)
    order = np.array([places[label] for label in labels(mixed)])
    assert not np.array_equal(order, np.arange(len(order)))
    np.testing.assert_array_equal(mixed.atoms.sites, straight.atoms.sites[order])
    assert (mixed.atom_mask == straight.atom_mask[order]).all()
    sites = straight.atoms.sites + np.random.default_rng(0).normal(0, 0.05, (len(order), 3))
    expected, result = straight.geometry(sites), mixed.geometry(sites[order])
    assert result.energy == pytest.approx(expected.energy, rel=1e-9)
    np.testing.assert_allclose(result.gradients, expected.gradients[order], rtol=1e-9, atol=1e-7)


def test_table_follows_the_file(library: RestraintLibrary) -> None:
    pdb = shuffled(wheel_bytes(WITH_ALTLOCS), seed=5)
    model = build(ModelInputs(pdb), library)
    lines = [line for line in pdb.decode().splitlines() if re.match("ATOM  |HETATM", line)]
    assert [line[12:16].strip() for line in lines] == list(model.atoms.name)
    assert [line[16].strip() for line in lines] == list(model.atoms.altloc)
    assert [line[17:20].strip() for line in lines] == list(model.atoms.resname)
    sites = [[float(line[i : i + 8]) for i in (30, 38, 46)] for line in lines]
    np.testing.assert_array_equal(model.atoms.sites, sites)
    assert model.summary.altlocs == ("A", "B")


def test_xray_gradients_follow_the_file(library: RestraintLibrary) -> None:
    pdb, data = wheel_bytes(PDB_7N2L), wheel_bytes(MTZ_7N2L)
    anisotropic = {}
    for line in pdb.decode().splitlines():
        if line.startswith("ANISOU"):
            anisotropic[line[6:11]] = line
    mixed_pdb = shuffled(pdb, seed=7).decode().splitlines()
    with_tensors = [
        part
        for line in mixed_pdb
        for part in (line, line[:6] in ("ATOM  ", "HETATM") and anisotropic.get(line[6:11]))
        if part
    ]
    straight = build(inputs(pdb, data), library)
    mixed = build(inputs("\n".join(with_tensors).encode(), data), library)
    places = labels(straight)
    order = np.array([places[label] for label in labels(mixed)])
    expected, result = straight.xray().gradients["sites"], mixed.xray().gradients["sites"]
    np.testing.assert_allclose(result, expected[order], rtol=1e-6, atol=1e-9)


def test_mmcif_and_pdb_agree(library: RestraintLibrary) -> None:
    pdb = build(inputs("mmtbx/regression/pdbs/pae_model.pdb"), library)
    cif = build(inputs("mmtbx/regression/pdbs/pae_model.cif"), library)
    assert cif.summary.format == "mmcif"
    assert list(cif.atoms.name) == list(pdb.atoms.name)
    np.testing.assert_array_equal(cif.atoms.sites, pdb.atoms.sites)
    expected, result = pdb.geometry(), cif.geometry()
    assert result.energy == pytest.approx(expected.energy, rel=1e-9)
    np.testing.assert_allclose(result.gradients, expected.gradients, rtol=1e-9, atol=1e-7)


def test_shuffled_mmcif_follows_the_file(library: RestraintLibrary) -> None:
    text = wheel_bytes("mmtbx/regression/pdbs/AF_json_v3.cif").decode().splitlines()
    rows = [place for place, line in enumerate(text) if line.split()[:1] == ["ATOM"]]
    generator = np.random.default_rng(2)
    residues: dict[str, list[str]] = {}
    for place in rows:
        residues.setdefault(text[place].split()[8], []).append(text[place])
    mixed = [r[i] for r in residues.values() for i in generator.permutation(len(r))]
    for place, line in zip(rows, mixed, strict=True):
        text[place] = line
    model = build(inputs("\n".join(text).encode()), library)
    header = [line.strip() for line in text if line.strip().startswith("_atom_site.")]
    column = header.index("_atom_site.Cartn_x")
    assert [float(line.split()[column]) for line in mixed] == list(model.atoms.sites[:, 0])
