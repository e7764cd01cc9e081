"""Reading a macromolecule, PDB or mmCIF, with the order of the atoms in its file."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import iotbx.cif.model
import iotbx.pdb
import iotbx.pdb.mmcif
import numpy as np
import numpy.typing as npt
from cctbx import crystal
from cctbx.array_family import flex
from iotbx.pdb import hy36decode, hy36encode

from bxmesh.server.geometry.engine import cif, files
from bxmesh.server.geometry.engine.errors import EngineError
from bxmesh.server.geometry.engine.types import AtomTable, Names
from bxmesh.server.geometry.engine.words import words

_FIELD = "macromolecule"
_UNREADABLE = "MACROMOLECULE_UNREADABLE"
_ATOM_RECORD = re.compile(r"^(?:ATOM  |HETATM)", re.MULTILINE)
_COORDINATES_END = 54
_REQUIRED_ITEMS = (
    "id",
    "type_symbol",
    "label_alt_id",
    "Cartn_x",
    "Cartn_y",
    "Cartn_z",
    "occupancy",
    "B_iso_or_equiv",
    "pdbx_PDB_model_num",
    "label_entity_id",
)
_REQUIRED_EITHER = (
    ("label_atom_id", "auth_atom_id"),
    ("label_asym_id", "auth_asym_id"),
    ("label_comp_id", "auth_comp_id"),
    ("label_seq_id", "auth_seq_id"),
)
_SERIAL_WIDTH = 5
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Macromolecule:
    """A parsed macromolecule. `order[i]` is the place in the file of the hierarchy's atom i."""

    format: Literal["pdb", "mmcif"]
    source: Any
    """The iotbx input object."""
    hierarchy: Any
    order: npt.NDArray[np.intp]
    symmetry: crystal.symmetry | None
    atoms: AtomTable
    hydrogens: npt.NDArray[np.bool_]
    """[N], in the file's order."""
    experiment: str
    notices: tuple[str, ...]


def read(data: bytes) -> Macromolecule:
    """Return the macromolecule in `data`; raises EngineError."""
    content = files.decompress(data, field=_FIELD)
    text = files.decode(content, field=_FIELD, reason=_UNREADABLE)
    try:
        if _is_mmcif(text):
            form: Literal["pdb", "mmcif"] = "mmcif"
            source, hierarchy, order = _read_mmcif(text)
        else:
            form = "pdb"
            source, hierarchy, order = _read_pdb(text)
        return _assemble(form, source, hierarchy, order)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            _UNREADABLE,
            f"The macromolecule cannot be read as PDB or mmCIF: {words(error)}",
            field=_FIELD,
        ) from error


def _is_mmcif(text: str) -> bool:
    return re.search(r"^(?:data_|_atom_site\.)", text, re.MULTILINE | re.IGNORECASE) is not None


def _read_pdb(text: str) -> tuple[Any, Any, npt.NDArray[np.intp]]:
    if _ATOM_RECORD.search(text) is None:
        raise EngineError(
            "NO_ATOMS",
            "The macromolecule has no ATOM or HETATM record; give a PDB or mmCIF file with atoms.",
            field=_FIELD,
        )
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith(("ATOM  ", "HETATM")) and len(line) < _COORDINATES_END:
            raise EngineError(
                _UNREADABLE,
                f"Line {number} of the PDB file ends before the coordinates of its atom: the file "
                "is cut off or not PDB. Upload the whole file.",
                field=_FIELD,
            )
    source = iotbx.pdb.input(source_info=None, lines=flex.std_string(lines))
    places = {atom.memory_id(): place for place, atom in enumerate(source.atoms())}
    hierarchy = source.construct_hierarchy(sort_atoms=True)
    return source, hierarchy, _merged(hierarchy, places)


def _read_mmcif(text: str) -> tuple[Any, Any, npt.NDArray[np.intp]]:
    document = cif.reader(text, field=_FIELD, reason=_UNREADABLE).model()
    blocks = [block for block in document.values() if "_atom_site.id" in block]
    if not blocks:
        _refuse_missing(document)
    block = blocks[0]
    missing = [item for item in _REQUIRED_ITEMS if f"_atom_site.{item}" not in block]
    missing += [
        " or ".join(items)
        for items in _REQUIRED_EITHER
        if not any(f"_atom_site.{item}" in block for item in items)
    ]
    if missing:
        raise EngineError(
            _UNREADABLE,
            f"The _atom_site loop of the mmCIF file lacks {', '.join(missing)}.",
            field=_FIELD,
            subjects=tuple(missing),
        )
    identifiers = block["_atom_site.id"]
    identifiers = [identifiers] if isinstance(identifiers, str) else list(identifiers)
    places = {int(identifier): place for place, identifier in enumerate(identifiers)}
    if len(places) != len(identifiers):
        raise EngineError(
            "DUPLICATE_ATOMS",
            "The _atom_site loop of the mmCIF file uses the same id for several atoms.",
            field=_FIELD,
        )
    only = iotbx.cif.model.cif()
    only["model"] = block
    source = iotbx.pdb.mmcif.cif_input(cif_object=only)
    hierarchy = source.construct_hierarchy(sort_atoms=False)
    marks = {
        atom.memory_id(): places[hy36decode(_SERIAL_WIDTH, atom.serial)]
        for atom in hierarchy.atoms()
    }
    hierarchy.sort_atoms_in_place()
    return source, hierarchy, _merged(hierarchy, marks)


def _refuse_missing(document: Any) -> None:
    if any(key.startswith("_refln") for block in document.values() for key in block):
        found = "reflections, not a model"
    elif any(key.startswith("_chem_comp_atom") for block in document.values() for key in block):
        found = "a restraint dictionary, not a model"
    else:
        found = "no _atom_site loop"
    raise EngineError("NO_ATOMS", f"The mmCIF file has {found}; give one with atoms.", field=_FIELD)


def _merged(hierarchy: Any, places: dict[int, int]) -> npt.NDArray[np.intp]:
    # Merging copies atoms, and the serial number is what a copy keeps.
    for atom in hierarchy.atoms():
        atom.serial = hy36encode(_SERIAL_WIDTH, places[atom.memory_id()])
    hierarchy.merge_atoms_at_end_to_residues()
    atoms = hierarchy.atoms()
    atoms.reset_i_seq()
    atoms.set_chemical_element_simple_if_necessary()
    return np.array([hy36decode(_SERIAL_WIDTH, atom.serial) for atom in atoms], dtype=np.intp)


def _assemble(
    form: Literal["pdb", "mmcif"], source: Any, hierarchy: Any, order: npt.NDArray[np.intp]
) -> Macromolecule:
    models = hierarchy.models_size()
    if models > 1:
        raise EngineError(
            "MULTIPLE_MODELS",
            f"The file has {models} models; give one, and the others as coordinates of a batch.",
            field=_FIELD,
        )
    if not len(order):
        raise EngineError("NO_ATOMS", "The macromolecule has no atoms.", field=_FIELD)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise EngineError(_UNREADABLE, "The order of the atoms cannot be followed.", field=_FIELD)
    _refuse_ambiguous(hierarchy)
    atoms = _table(hierarchy, order)
    if not np.isfinite(atoms.sites).all():
        raise EngineError(
            _UNREADABLE, "The macromolecule has coordinates that are not finite.", field=_FIELD
        )
    symmetry = _symmetry(source)
    return Macromolecule(
        format=form,
        source=source,
        hierarchy=hierarchy,
        order=order,
        symmetry=symmetry,
        atoms=atoms,
        hydrogens=np.isin(atoms.element, ["H", "D"]),
        experiment=_experiment(form, source),
        notices=_notices(source, symmetry),
    )


def _refuse_ambiguous(hierarchy: Any) -> None:
    counts = hierarchy.overall_counts()
    duplicates = [group[0].id_str().strip() for group in counts.duplicate_atom_labels]
    if duplicates:
        shown = "; ".join(duplicates[:_SHOWN])
        more = f" and {len(duplicates) - _SHOWN} more" if len(duplicates) > _SHOWN else ""
        raise EngineError(
            "DUPLICATE_ATOMS",
            f"The macromolecule has atoms with the same label: {shown}{more}. Rename them or give "
            "them different alternative-location letters.",
            field=_FIELD,
            subjects=tuple(duplicates),
        )
    counts.raise_residue_groups_with_multiple_resnames_using_same_altloc_if_necessary()
    counts.raise_improper_alt_conf_if_necessary()
    counts.raise_chains_with_mix_of_proper_and_improper_alt_conf_if_necessary()


def _table(hierarchy: Any, order: npt.NDArray[np.intp]) -> AtomTable:
    rows = [
        (
            atom.name.strip(),
            group.resname.strip(),
            residue.parent().id.strip(),
            residue.resseq.strip(),
            residue.icode.strip(),
            group.altloc.strip(),
            atom.element.strip().upper(),
        )
        for atom in hierarchy.atoms()
        for group in (atom.parent(),)
        for residue in (group.parent(),)
    ]
    columns = [_column(values, order) for values in zip(*rows, strict=True)]
    sites = np.empty((len(rows), 3))
    sites[order] = hierarchy.atoms().extract_xyz().as_double().as_numpy_array().reshape(-1, 3)
    sites.flags.writeable = False
    name, resname, chain, resseq, icode, altloc, element = columns
    return AtomTable(name, resname, chain, resseq, icode, altloc, element, sites)


def _column(values: tuple[str, ...], order: npt.NDArray[np.intp]) -> Names:
    column = np.empty(len(values), dtype=f"<U{max(1, *map(len, values))}")
    column[order] = values
    column.flags.writeable = False
    return column


def _symmetry(source: Any) -> crystal.symmetry | None:
    symmetry = source.crystal_symmetry()
    if (
        symmetry is None
        or symmetry.is_empty()
        or symmetry.is_nonsense()
        or symmetry.is_incomplete()
    ):
        return None
    return symmetry


def _experiment(form: Literal["pdb", "mmcif"], source: Any) -> str:
    if form == "mmcif":
        return str(source.get_experiment_type())
    # Read here because iotbx does not know ELECTRON CRYSTALLOGRAPHY.
    lines = [line[10:].strip() for line in source.title_section() if line.startswith("EXPDTA")]
    return " ".join(lines).upper()


def _notices(source: Any, symmetry: crystal.symmetry | None) -> tuple[str, ...]:
    notices = []
    if symmetry is None:
        notices.append("The macromolecule has no unit cell and space group: geometry only.")
    operators = source.process_MTRIX_records()
    if operators is not None and not all(operators.coordinates_present):
        notices.append(
            "The file's non-crystallographic symmetry (MTRIX) is not applied: the atoms in the "
            "file are used as they are."
        )
    return tuple(notices)
