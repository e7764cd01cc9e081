"""Files with other coordinates: all else in them stays."""

from __future__ import annotations

import gzip

import iotbx.pdb
import numpy as np
import pytest

from bxmesh.server.geometry.engine import EngineError
from bxmesh.server.geometry.engine import macromolecule as reading
from bxmesh.server.geometry.engine.writing import with_sites
from tests.engine.wheel import PDB_1YJP, PDB_7N2L, wheel_bytes

PDB = [PDB_1YJP, PDB_7N2L, "iotbx/regression/secondary_structure/1ubf_cutted.pdb"]


def as_mmcif(data: bytes) -> bytes:
    source = iotbx.pdb.input(source_info=None, lines=data.decode().splitlines())
    text: str = source.construct_hierarchy().as_mmcif_string(
        crystal_symmetry=source.crystal_symmetry()
    )
    return text.encode()


def moved(data: bytes) -> np.ndarray:
    sites = reading.read(data).atoms.sites
    return np.round(sites + np.random.default_rng(1).normal(size=sites.shape), 3)


@pytest.mark.parametrize("path", PDB)
def test_a_pdb_file_keeps_its_records(path: str) -> None:
    data = wheel_bytes(path)
    sites = moved(data)
    written = with_sites(data, sites, mmcif=False)
    assert np.allclose(reading.read(written).atoms.sites, sites, atol=1e-9)
    before, after = data.decode().splitlines(), written.decode().splitlines()
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if old.startswith(("ATOM  ", "HETATM")):
            assert (old[:30], old[54:]) == (new[:30], new[54:])
        else:
            assert old == new
    # With the coordinates that it had, it is the file that it was.
    same = with_sites(data, reading.read(data).atoms.sites, mmcif=False)
    assert same == data.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("path", PDB[:2])
def test_an_mmcif_file_keeps_all_else(path: str) -> None:
    data = as_mmcif(wheel_bytes(path))
    # As depositors write: quotes, text fields, comments, and a second loop with a similar name.
    data = (
        data
        + b"\n_struct.title 'it''s a \"title\"'\n_struct.text\n;a text\n_atom_site.Cartn_x\n 1 2 3\n;\n"
        + b"# a 'comment\nloop_\n_atom_sites_alt.id\n_atom_sites_alt.details\n1 0.1\n2 0.2\n"
    )
    sites = moved(data)
    written = with_sites(data, sites, mmcif=True)
    assert np.allclose(reading.read(written).atoms.sites, sites, atol=1e-9)
    before, after = data.split(b"\n"), written.split(b"\n")
    assert len(before) == len(after)
    changed = [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert len(changed) == len(sites)
    assert all(before[i].lstrip().startswith((b"ATOM", b"HETATM")) for i in changed)


def test_gzipped_files_are_unpacked() -> None:
    data = wheel_bytes(PDB_1YJP)
    sites = moved(data)
    assert with_sites(gzip.compress(data), sites, mmcif=False) == with_sites(
        data, sites, mmcif=False
    )


def test_what_has_no_room_is_refused() -> None:
    data = wheel_bytes(PDB_1YJP)
    for value in (10_000.0, -1_000.0):
        sites = moved(data)
        sites[3, 1] = value
        with pytest.raises(EngineError) as raised:
            with_sites(data, sites, mmcif=False)
        assert raised.value.reason == "COORDINATES_DO_NOT_FIT"
    with_sites(as_mmcif(data), sites, mmcif=True)
