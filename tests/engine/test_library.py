"""The restraint library: found, prepared once, loaded once."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from bxmesh.server.geometry.engine import EngineError, RestraintLibrary
from bxmesh.server.geometry.engine import library as module

VARIABLES = ("MMTBX_CCP4_MONOMER_LIB", "CLIBD_MON")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
    return monkeypatch


def prepare(cache: Path) -> str:
    located = module._embedded()
    assert located is not None
    from bxmesh.server.geometry.engine import adapter

    return str(adapter.prepare(located.path, "1", cache))


def test_processes_may_prepare_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folders = set(pool.map(prepare, [tmp_path] * 2))
    assert len(folders) == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(folders.pop()).name]


def test_failed_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bxmesh.server.geometry.engine import adapter

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(adapter, "_write_residue", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loaded_once(library: RestraintLibrary) -> None:
    assert library.load() is library.load()


def test_embedded_is_described(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described = RestraintLibrary(tmp_path).describe()
    assert described.source == "embedded"
    assert described.residues > 100
    assert described.has_nucleic_acid_links
    assert not described.knows_hydrogens
    assert not described.complete
    assert described.remedy


def test_configured_library_comes_first(
    bare: pytest.MonkeyPatch, library: RestraintLibrary, tmp_path: Path
) -> None:
    located = module._embedded()
    assert located is not None
    bare.setenv("CLIBD_MON", str(located.path))
    assert RestraintLibrary(tmp_path).describe().source == "CLIBD_MON"
    bare.setenv("MMTBX_CCP4_MONOMER_LIB", str(located.path))
    described = RestraintLibrary(tmp_path).describe()
    assert described.source == "MMTBX_CCP4_MONOMER_LIB"
    assert not described.has_nucleic_acid_links
    assert "DNA and RNA" in described.remedy


def test_missing_library_says_what_to_do(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setattr(module, "_PACKAGE", "no_such_package")
    missing = RestraintLibrary(tmp_path)
    assert missing.describe().source == ""
    with pytest.raises(EngineError) as caught:
        missing.load()
    assert caught.value.reason == "LIBRARY_MISSING"
    assert "monomers" in caught.value.message
    assert "MMTBX_CCP4_MONOMER_LIB" in caught.value.message


def test_nucleotides_have_what_mmtbx_asks_for(library: RestraintLibrary) -> None:
    monomers, _ = library.load()
    assert {"rna2p", "rna3p"} <= monomers.link_link_id_dict.keys()
    names = {p + b for p in ("rna2p", "rna3p") for b in ("", "_pur", "_pyr")}
    assert names <= monomers.mod_mod_id_dict.keys()
    for name in ("AD", "CD", "GD", "TD"):
        residue = monomers.get_comp_comp_id_direct(name)
        assert residue.set_classification().is_dna()
        torsions = [
            frozenset((t.atom_id_1, t.atom_id_2, t.atom_id_3, t.atom_id_4))
            for t in residue.tor_list
        ]
        assert len(torsions) == len(set(torsions))
    pucker, _ = monomers.get_comp_comp_id_mod(monomers.get_comp_comp_id_direct("A"), ("rna2p_pur",))
    delta = [t for t in pucker.tor_list if t.id == "delta"]
    assert [t.value_angle for t in delta] == [147.0]
    assert pucker.get_bond("C1*", "N9").value_dist == 1.464


def test_cadmium_is_still_known(library: RestraintLibrary) -> None:
    from bxmesh.server.geometry.engine import ModelInputs
    from bxmesh.server.geometry.engine.model import build

    pdb = (
        b"HETATM    1 CD    CD A   1       0.000   0.000   0.000  1.00 10.00          CD\n"
        b"HETATM    2  O   HOH A   2       2.300   0.000   0.000  1.00 10.00           O\n"
    )
    assert build(ModelInputs(pdb), library).geometry().terms["nonbonded"].count == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "import bxmesh.server.geometry.engine\n"
            "print([m for m in sys.modules if m.startswith(('cctbx', 'iotbx', 'boost'))])",
            "[]",
        ),
        (
            "import grpc\n"
            "try:\n    import bxmesh.server.geometry.engine.model\n"
            "except ImportError as error:\n    print(error)",
            "cctbx cannot be loaded after grpc",
        ),
        ("import bxmesh.server.geometry.engine.model\nimport grpc\nprint('both')", "both"),
    ],
)
def test_imports(code: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith(expected)
