"""Makes a directory that mmtbx can read from the CCP4 monomer library of `coot_headless_api`.

What differs between the two: mmtbx wants the nucleotide links and modifications by sugar pucker,
calls the DNA residues AD, CD, GD and TD, and takes one torsion per four atoms, with alternative
values, where the library has a row per value.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

import iotbx.cif
from iotbx.cif import model as cif

from bxmesh.server.geometry.engine import nucleic_acids
from bxmesh.server.geometry.engine.library import PREPARED_PREFIX

ADAPTER_VERSION = "1"
_DNA = {"DA": "AD", "DC": "CD", "DG": "GD", "DT": "TD"}


def prepare(source: Path, source_version: str, cache: Path) -> Path:
    """Return the prepared copy of `source` under `cache`, making it when it is not there.

    The copy appears in one step, so that several processes may prepare it at once.
    """
    key = hashlib.sha256(f"{source_version}\n{ADAPTER_VERSION}".encode()).hexdigest()[:16]
    target = cache / f"{PREPARED_PREFIX}{key}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=cache))
    try:
        _write(source, draft)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:
            # Another process was first; its copy is the same.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write(source: Path, draft: Path) -> None:
    shutil.copyfile(source / "ener_lib.cif", draft / "ener_lib.cif")
    (draft / "list").mkdir()
    _write_cif(_adapted_list(source), draft / "list" / "mon_lib_list.cif")
    residues = {path.stem: path for path in sorted(source.glob("?/*.cif"))}
    for name, path in residues.items():
        document = _read_cif(path)
        _merge_torsions(document[f"comp_{name}"])
        if name not in _DNA.values():
            _write_residue(document, name, draft)
    for name, alias in _DNA.items():
        document = _renamed(_read_cif(residues[name]), name, alias)
        _merge_torsions(document[f"comp_{alias}"])
        if alias in residues:
            _add_ion(document[f"comp_{alias}"], _read_cif(residues[alias])[f"comp_{alias}"])
        _write_residue(document, alias, draft)


def _adapted_list(source: Path) -> cif.cif:
    document = _read_cif(source / "list" / "mon_lib_list.cif")
    # 35,000 rows that mmtbx does not read, and most of the time it takes to load the file.
    del document["comp_list"]
    links, modifications = nucleic_acids.overlay()
    link_loop = document["link_list"].get_loop("_chem_link")
    for name, block in links.items():
        link_loop.add_row(nucleic_acids.link_row(name))
        document[f"link_{name}"] = block
    modification_loop = document["mod_list"].get_loop("_chem_mod")
    for name, block in modifications.items():
        modification_loop.add_row(nucleic_acids.modification_row(name))
        document[f"mod_{name}"] = block
    return document


def _merge_torsions(block: cif.block) -> None:
    loop = block.get_loop("_chem_comp_tor")
    if loop is None:
        return
    merged: dict[tuple[str, ...], dict[str, str]] = {}
    alternatives: dict[tuple[str, ...], list[str]] = {}
    for row in loop.iterrows():
        atoms = tuple(row[f"_chem_comp_tor.atom_id_{i}"] for i in (1, 2, 3, 4))
        key = min(atoms, atoms[::-1])
        value = row["_chem_comp_tor.value_angle"]
        if key not in merged:
            merged[key] = dict(row)
            alternatives[key] = []
        elif value != merged[key]["_chem_comp_tor.value_angle"]:
            alternatives[key].append(value)
    if len(merged) == loop.n_rows():
        return
    replacement = cif.loop(header=[*loop.keys(), "_chem_comp_tor.alt_value_angle"])
    for key, row in merged.items():
        replacement.add_row([*row.values(), ",".join(alternatives[key]) or "."])
    del block["_chem_comp_tor"]
    block.add_loop(replacement)


def _renamed(document: cif.cif, name: str, alias: str) -> cif.cif:
    block = document[f"comp_{name}"]
    for loop in (document["comp_list"].get_loop("_chem_comp"), *block.iterloops()):
        for key in ("_chem_comp.id", *(k for k in loop if k.endswith(".comp_id"))):
            if key in loop:
                loop[key] = type(loop[key])([alias] * loop.n_rows())
    renamed = cif.cif()
    renamed["comp_list"] = document["comp_list"]
    renamed[f"comp_{alias}"] = block
    return renamed


def _add_ion(block: cif.block, ion: cif.block) -> None:
    # CD is cadmium in the PDB and deoxycytidine in mmtbx. With the ion among its atoms, the
    # definition serves both: a residue takes the atoms it has.
    atoms = block.get_loop("_chem_comp_atom")
    ion_atoms = ion.get_loop("_chem_comp_atom")
    for row in ion_atoms.iterrows():
        atoms.add_row([row.get(key, ".") for key in atoms.keys()])  # noqa: SIM118


def _write_residue(document: cif.cif, name: str, draft: Path) -> None:
    folder = draft / name[0].lower()
    folder.mkdir(exist_ok=True)
    _write_cif(document, folder / f"{name}.cif")


def _read_cif(path: Path) -> cif.cif:
    return iotbx.cif.reader(file_path=str(path), strict=False).model()


def _write_cif(document: cif.cif, path: Path) -> None:
    with path.open("w", encoding="utf-8") as out:
        document.show(out=out)
