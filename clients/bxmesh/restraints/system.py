"""Restraints as the kernels take them: sorted, and with operators in the Cartesian frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints.kernels.bonded import (
    Angles,
    Bonds,
    Chiralities,
    Dihedrals,
    Images,
    SymmetryBonds,
)
from bxmesh.restraints.kernels.neighbours import Contacts, Lattice
from bxmesh.restraints.kernels.nonbonded import Repulsion
from bxmesh.restraints.kernels.planes import Parallelities, Planarities
from bxmesh.restraints.kernels.sample import System
from bxmesh.restraints.restraints import Restraints

__all__ = ["system"]


def system(restraints: Restraints, buffer: float, *, isolated: bool) -> System:
    """Returns the kernels' view of restraints; isolated, it has neither images nor bonds to them."""
    lattice = _lattice(restraints)
    bonds = _bonds(restraints, "symmetry_bond")
    if isolated:
        bonds = Bonds(*(each[:0] for each in bonds))
    return System(
        bonds=_bonds(restraints, "bond"),
        symmetry_bonds=SymmetryBonds(bonds, *_named(restraints, "symmetry_bond", "operator shift")),
        angles=Angles(*_named(restraints, "angle", "atoms ideal weight slack")),
        dihedrals=Dihedrals(
            *_named(
                restraints,
                "dihedral",
                "atoms ideal weight slack limit periodicity top_out alternative_offsets alternatives",
            )
        ),
        chiralities=Chiralities(*_named(restraints, "chirality", "atoms ideal weight both_signs")),
        planarities=Planarities(*_named(restraints, "planarity", "offsets atoms weight")),
        parallelities=Parallelities(
            *_named(
                restraints,
                "parallelity",
                "first_offsets first_atoms second_offsets second_atoms ideal weight slack limit "
                "top_out",
            )
        ),
        contacts=_contacts(restraints, buffer),
        lattice=lattice,
        repulsion=Repulsion(*restraints["nonbonded_function"].tolist()),
    )


def _named(restraints: Restraints, prefix: str, names: str) -> list[NDArray[Any]]:
    # Whatever the tensors came from, the kernels are compiled for one kind of array.
    return [_own(restraints[f"{prefix}_{name}"]) for name in names.split()]


def _own(array: NDArray[Any]) -> NDArray[Any]:
    return np.array(array, order="C")


def _bonds(restraints: Restraints, name: str) -> Bonds:
    return Bonds(*_named(restraints, name, "atoms ideal weight slack limit top_out"))


def _contacts(restraints: Restraints, buffer: float) -> Contacts:
    distance, distance_1_4 = (
        _own(restraints[name]) for name in ("nonbonded_distance", "nonbonded_distance_1_4")
    )
    k_rep = restraints["nonbonded_function"][1]
    listed = k_rep * np.maximum(distance, distance_1_4) + buffer
    special = np.full(restraints.n_atoms, -1, dtype=np.int32)
    special[restraints["special_atoms"]] = np.arange(len(restraints["special_atoms"]))
    within = ~_to_image(restraints)
    within &= restraints["close_atoms"][:, 0] < restraints["close_atoms"][:, 1]
    start, order = _by_first_atom(restraints, within)
    return Contacts(
        atoms=np.flatnonzero(restraints["atom_mask"]).astype(np.int32),
        kind=_own(restraints["nonbonded_type"]),
        distance=distance,
        distance_1_4=distance_1_4,
        listed_sq=listed**2,
        reach=float(listed.max()),
        model=_own(restraints["nonbonded_model"]),
        conformer=_own(restraints["nonbonded_conformer"]),
        exclusion=_own(restraints["nonbonded_symmetry_exclusion"]),
        special=special,
        close_start=start,
        close_atom=restraints["close_atoms"][order, 1],
        close_bonds=restraints["close_bonds"][order],
    )


def _lattice(restraints: Restraints) -> Lattice:
    to_cell, to_space = restraints["fractionalization"], restraints["orthogonalization"]
    rotation = restraints["symmetry_rotations"].astype(np.float64)
    translation = _own(restraints["symmetry_translations"])
    special = restraints["special_atoms"]
    distinct = np.zeros((len(special), len(rotation)), dtype=np.bool_)
    rows = np.repeat(np.arange(len(special)), np.diff(restraints["special_offsets"]))
    distinct[rows, restraints["special_operators"]] = True
    start, order = _by_first_atom(restraints, _to_image(restraints))
    return Lattice(
        rotation=rotation,
        translation=translation,
        fractionalization=_own(to_cell),
        distinct=distinct,
        images=Images(
            rotation=to_space @ rotation @ to_cell,
            translation=translation @ to_space.T,
            cell=_own(to_space),
        ),
        close_start=start,
        close_atom=restraints["close_atoms"][order, 1],
        close_bonds=restraints["close_bonds"][order],
        close_operator=restraints["close_operator"][order],
        close_shift=restraints["close_shift"][order],
    )


def _to_image(restraints: Restraints) -> NDArray[np.bool_]:
    operator, shift = restraints["close_operator"], restraints["close_shift"]
    return np.asarray((operator != 0) | shift.any(axis=1))


def _by_first_atom(
    restraints: Restraints, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns where the chosen close pairs of each atom begin [N + 1], and these sorted."""
    first = restraints["close_atoms"][:, 0]
    (order,) = np.nonzero(chosen)
    order = order[np.argsort(first[order], kind="stable")]
    counts = np.bincount(first[order], minlength=restraints.n_atoms)
    return np.concatenate([[0], np.cumsum(counts)]), order
