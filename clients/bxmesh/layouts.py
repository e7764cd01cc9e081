"""Which place of a caller's layout is which atom of a model; the same for clients and servers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ATOM37", "AtomName", "Match", "amino_acids", "atom37_names", "match"]

# fmt: off
ATOM37 = (
    "N", "CA", "C", "CB", "O", "CG", "CG1", "CG2", "OG", "OG1", "SG", "CD", "CD1", "CD2",
    "ND1", "ND2", "OD1", "OD2", "SD", "CE", "CE1", "CE2", "CE3", "NE", "NE1", "NE2", "OE1",
    "OE2", "CH2", "NH1", "NH2", "OH", "CZ", "CZ2", "CZ3", "NZ", "OXT",
)
"""The atoms in order: `atom_types` of alphafold/common/residue_constants.py and of OpenFold."""
# fmt: on

Residue = tuple[str, str]
"""Its chain and its number with the insertion code."""

_BACKBONE = {"N", "CA", "C"}


class AtomName(NamedTuple):
    """What an atom is known by."""

    chain_id: str
    residue_number: str
    """With its insertion code, such as "52A"."""
    name: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclass(frozen=True)
class Match:
    """The places of a caller that are atoms of the model. Of alternative locations the first one counts."""

    places: NDArray[np.intp]
    """The caller's places, in their order."""
    atoms: NDArray[np.intp]
    """The model's atoms at those places."""
    only_in_model: tuple[AtomName, ...]
    """The atoms that the caller lacks, alternative locations after the first among them."""
    only_in_caller: tuple[AtomName, ...]
    """The atoms that the model lacks."""


def match(model: Sequence[AtomName], caller: Sequence[AtomName | None]) -> Match:
    """Returns which of the caller's places (None for one without an atom) is which of the model's atoms.

    Raises ValueError when the caller names an atom twice.
    """
    first: dict[AtomName, int] = {}
    for atom, name in enumerate(model):
        first.setdefault(name, atom)
    pairs = [(place, first[name]) for place, name in enumerate(caller) if name in first]
    found = {atom for _, atom in pairs}
    if len(found) < len(pairs):
        raise ValueError("an atom is named twice; every atom has one place")
    places, atoms = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    return Match(
        places,
        atoms,
        tuple(name for atom, name in enumerate(model) if atom not in found),
        tuple(name for name in caller if name is not None and name not in first),
    )


def amino_acids(model: Iterable[AtomName]) -> list[Residue]:
    """Returns the residues with N, CA and C, in the model's order."""
    residues: dict[Residue, set[str]] = {}
    for chain_id, number, name in model:
        residues.setdefault((chain_id, number), set()).add(name)
    return [residue for residue, names in residues.items() if names >= _BACKBONE]


def atom37_names(
    model: Iterable[AtomName], residues: Sequence[Residue], mask: NDArray[np.bool_] | None
) -> list[AtomName | None]:
    """Returns the names of the [R, 37] places, row by row, None for those off the mask [R, 37].

    Without a mask those that the model lacks have none.
    """
    if mask is None:
        own = set(model)
        mask = np.array(
            [[AtomName(*residue, name) in own for name in ATOM37] for residue in residues]
        )
    return [
        AtomName(*residue, name) if present else None
        for residue, row in zip(residues, mask, strict=True)
        for name, present in zip(ATOM37, row, strict=True)
    ]
