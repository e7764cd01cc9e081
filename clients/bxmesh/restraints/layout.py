"""The tensors that restraints are made of: names, types, shapes; docs/restraints.md tells more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints.errors import RestraintsError

__all__ = ["FIELDS", "LAYOUT_VERSION", "TERMS", "Field", "Tensors", "check"]

LAYOUT_VERSION = 1
"""The version of the layout that this package writes, and the newest that it reads."""

TERMS = ("bond", "angle", "dihedral", "chirality", "planarity", "parallelity", "nonbonded")
"""The terms of the energy, in this order."""

_MOST_CONTACT = 20.0
_MOST_OPERATORS = 192
_MOST_SHIFT = 2**20

Tensors = Mapping[str, NDArray[Any]]


class Field(NamedTuple):
    """One tensor."""

    dtype: str
    """As NumPy writes it: `<f8`, `<i4` or `|b1`."""
    shape: tuple[str | int, ...]
    """A letter is a length that all tensors with it have in common; `X+1` is one more than X."""


_FLOAT, _INT, _BOOL = "<f8", "<i4", "|b1"


def _restraints(
    name: str, size: str, atoms: int, floats: str, *, ints: str = "", bools: str = ""
) -> dict[str, Field]:
    fields = {f"{name}_atoms": Field(_INT, (size, atoms))}
    for dtype, parameters in ((_FLOAT, floats), (_INT, ints), (_BOOL, bools)):
        fields |= {f"{name}_{each}": Field(dtype, (size,)) for each in parameters.split()}
    return fields | {f"{name}_origin": Field(_INT, (size,))}


FIELDS: Mapping[str, Field] = {
    "layout_version": Field(_INT, (1,)),
    "atom_mask": Field(_BOOL, ("N",)),
    "unit_cell": Field(_FLOAT, (6,)),
    "unit_cell_is_substitute": Field(_BOOL, (1,)),
    "orthogonalization": Field(_FLOAT, (3, 3)),
    "fractionalization": Field(_FLOAT, (3, 3)),
    "symmetry_rotations": Field(_INT, ("S", 3, 3)),
    "symmetry_translations": Field(_FLOAT, ("S", 3)),
    "special_atoms": Field(_INT, ("K",)),
    "special_offsets": Field(_INT, ("K+1",)),
    "special_operators": Field(_INT, ("K_ops",)),
    "max_bond_distance": Field(_FLOAT, (1,)),
    **_restraints("bond", "B", 2, "ideal weight slack limit", bools="top_out"),
    **_restraints(
        "symmetry_bond", "Y", 2, "ideal weight slack limit", ints="operator", bools="top_out"
    ),
    "symmetry_bond_shift": Field(_INT, ("Y", 3)),
    **_restraints("angle", "A", 3, "ideal weight slack"),
    **_restraints(
        "dihedral", "D", 4, "ideal weight slack limit", ints="periodicity", bools="top_out"
    ),
    "dihedral_alternative_offsets": Field(_INT, ("D+1",)),
    "dihedral_alternatives": Field(_FLOAT, ("D_alternatives",)),
    **_restraints("chirality", "C", 4, "ideal weight", bools="both_signs"),
    "planarity_offsets": Field(_INT, ("P+1",)),
    "planarity_atoms": Field(_INT, ("P_atoms",)),
    "planarity_weight": Field(_FLOAT, ("P_atoms",)),
    "planarity_origin": Field(_INT, ("P",)),
    "parallelity_first_offsets": Field(_INT, ("L+1",)),
    "parallelity_first_atoms": Field(_INT, ("L_first",)),
    "parallelity_second_offsets": Field(_INT, ("L+1",)),
    "parallelity_second_atoms": Field(_INT, ("L_second",)),
    "parallelity_ideal": Field(_FLOAT, ("L",)),
    "parallelity_weight": Field(_FLOAT, ("L",)),
    "parallelity_slack": Field(_FLOAT, ("L",)),
    "parallelity_limit": Field(_FLOAT, ("L",)),
    "parallelity_top_out": Field(_BOOL, ("L",)),
    "parallelity_origin": Field(_INT, ("L",)),
    "nonbonded_function": Field(_FLOAT, (4,)),
    "nonbonded_type": Field(_INT, ("N",)),
    "nonbonded_distance": Field(_FLOAT, ("T", "T")),
    "nonbonded_distance_1_4": Field(_FLOAT, ("T", "T")),
    "nonbonded_model": Field(_INT, ("N",)),
    "nonbonded_conformer": Field(_INT, ("N",)),
    "nonbonded_symmetry_exclusion": Field(_INT, ("N",)),
    "close_atoms": Field(_INT, ("E", 2)),
    "close_bonds": Field(_INT, ("E",)),
    "close_operator": Field(_INT, ("E",)),
    "close_shift": Field(_INT, ("E", 3)),
}
"""Every tensor of the layout by its name."""

_ATOMS = (
    "special_atoms",
    "bond_atoms",
    "symmetry_bond_atoms",
    "angle_atoms",
    "dihedral_atoms",
    "chirality_atoms",
    "planarity_atoms",
    "parallelity_first_atoms",
    "parallelity_second_atoms",
    "close_atoms",
)
_OPERATORS = ("special_operators", "symmetry_bond_operator", "close_operator")
_RAGGED = {
    "special_offsets": "special_operators",
    "dihedral_alternative_offsets": "dihedral_alternatives",
    "planarity_offsets": "planarity_atoms",
    "parallelity_first_offsets": "parallelity_first_atoms",
    "parallelity_second_offsets": "parallelity_second_atoms",
}


def check(tensors: Tensors) -> None:
    """Raises RestraintsError unless the tensors are restraints of a layout that is known.

    After it every index is within its bounds and every number is finite, save limits that may be
    infinite.
    """
    _check_version(tensors)
    if missing := [name for name in FIELDS if name not in tensors]:
        raise _damaged(f"the tensors {', '.join(missing)} are missing")
    lengths: dict[str, int] = {}
    for name, field in FIELDS.items():
        _check_shape(name, field, tensors[name], lengths)
    for name in FIELDS:
        if FIELDS[name].dtype == _FLOAT and name != "max_bond_distance":
            _require(np.isfinite(tensors[name]).all(), name, "has numbers that are not finite")
    for name in _ATOMS:
        _check_range(name, tensors[name], lengths["N"])
    _require(
        all(tensors["atom_mask"][tensors[name]].all() for name in _ATOMS),
        "atom_mask",
        "leaves out atoms that have restraints",
    )
    for name in _OPERATORS:
        _check_range(name, tensors[name], lengths["S"])
    for name, ragged in _RAGGED.items():
        offsets = tensors[name]
        whole = offsets[0] == 0 and offsets[-1] == len(tensors[ragged])
        _require(whole and (np.diff(offsets) >= 0).all(), name, f"does not divide {ragged}")
    _check_values(tensors)


def _check_version(tensors: Tensors) -> None:
    version = tensors.get("layout_version")
    if version is None or version.shape != (1,) or version.dtype.kind != "i":
        raise _damaged("the tensor layout_version is missing")
    if not 1 <= version[0] <= LAYOUT_VERSION:
        raise RestraintsError(
            "RESTRAINTS_LAYOUT_UNKNOWN",
            f"These restraints have layout {version[0]}; this version of bxmesh reads layouts up to "
            f"{LAYOUT_VERSION}. Install a newer one: pip install --upgrade bxmesh.",
        )


def _check_shape(name: str, field: Field, tensor: NDArray[Any], lengths: dict[str, int]) -> None:
    if tensor.dtype.str != field.dtype or tensor.ndim != len(field.shape):
        raise _damaged(
            f"{name} is {tensor.dtype.str} {list(tensor.shape)}, not {field.dtype} {list(field.shape)}"
        )
    for length, expected in zip(tensor.shape, field.shape, strict=True):
        if isinstance(expected, str):
            letter, _, more = expected.partition("+")
            expected = lengths.setdefault(letter, length - int(more or 0)) + int(more or 0)
        _require(length == expected, name, f"has the shape {list(tensor.shape)}")


def _check_range(name: str, indices: NDArray[Any], end: int) -> None:
    inside = not indices.size or (indices.min() >= 0 and indices.max() < end)
    _require(inside, name, f"has indices outside 0 to {end - 1}")


def _check_values(tensors: Tensors) -> None:
    _check_contacts(tensors)
    for name in FIELDS:
        # cctbx takes a negative slack of a dihedral for none.
        if name.endswith("_slack") and not name.startswith("dihedral"):
            _require((tensors[name] >= 0).all(), name, "has negative numbers")
    weights, offsets = tensors["planarity_weight"], tensors["planarity_offsets"]
    _require((np.diff(offsets) > 0).all(), "planarity_offsets", "has planes without atoms")
    totals = np.add.reduceat(weights, offsets[:-1]) if len(weights) else weights
    _require((totals > 0).all(), "planarity_weight", "has planes without weight")
    for side in ("first", "second"):
        sizes = np.diff(tensors[f"parallelity_{side}_offsets"])
        _require((sizes > 2).all(), f"parallelity_{side}_offsets", "has planes of under 3 atoms")
    _require((tensors["parallelity_limit"] >= 1).all(), "parallelity_limit", "is below 1")
    _require(tensors["max_bond_distance"][0] > 0, "max_bond_distance", "is not positive")
    _check_symmetry(tensors)


def _check_contacts(tensors: Tensors) -> None:
    types, mask = tensors["nonbonded_type"], tensors["atom_mask"]
    _require(mask.any(), "atom_mask", "has no atom")
    _check_range("nonbonded_type", types[mask], len(tensors["nonbonded_distance"]))
    _require((types[~mask] == -1).all(), "nonbonded_type", "has types of atoms without restraints")
    for name in ("nonbonded_distance", "nonbonded_distance_1_4"):
        distances = tensors[name]
        plausible = (distances > 0).all() and (distances <= _MOST_CONTACT).all()
        _require(plausible, name, f"has distances outside 0 to {_MOST_CONTACT:g} Å")
        _require((distances == distances.T).all(), name, "is not symmetric")
    _require((tensors["nonbonded_function"] > 0).all(), "nonbonded_function", "is not positive")
    _require(tensors["nonbonded_function"][1] <= 2, "nonbonded_function", "has k_rep above 2")
    bonds = tensors["close_bonds"]
    _require(((bonds >= 1) & (bonds <= 3)).all(), "close_bonds", "is not 1 to 3")


def _check_symmetry(tensors: Tensors) -> None:
    """Bounds for what pairs with images are looked for with."""
    to_space, to_cell = tensors["orthogonalization"], tensors["fractionalization"]
    _require(np.abs(to_cell).max() <= 1, "fractionalization", "is of a cell under 1 Å")
    _require(np.abs(to_space).max() <= 1e5, "orthogonalization", "is of a cell above 10 µm")
    _require(np.allclose(to_space @ to_cell, np.eye(3)), "fractionalization", "is no inverse")
    rotations, translations = tensors["symmetry_rotations"], tensors["symmetry_translations"]
    _require(0 < len(rotations) <= _MOST_OPERATORS, "symmetry_rotations", "is no space group")
    _require((np.abs(rotations) <= 1).all(), "symmetry_rotations", "is no space group")
    _require((np.abs(translations) <= 2).all(), "symmetry_translations", "is no space group")
    identity = (rotations[0] == np.eye(3)).all() and not translations[0].any()
    _require(identity, "symmetry_rotations", "does not begin with the identity")
    for name in ("symmetry_bond_shift", "close_shift"):
        shifts = tensors[name].astype(np.int64)
        _require((np.abs(shifts) < _MOST_SHIFT).all(), name, "goes too far")


def _require(condition: Any, name: str, problem: str) -> None:
    if not condition:
        raise _damaged(f"{name} {problem}")


def _damaged(problem: str) -> RestraintsError:
    return RestraintsError(
        "RESTRAINTS_DAMAGED",
        f"These are not restraints that can be used: {problem}. Export them again.",
    )
