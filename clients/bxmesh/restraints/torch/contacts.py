"""Who may touch whom: types, models, conformers and bonds, as tables on a device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bxmesh.restraints.restraints import Restraints

__all__ = ["MOST_PAIRS", "Contacts", "between", "close_tables", "contacts_of", "meet", "to_image"]

MOST_PAIRS = 5_000_000
"""With more of them than that a sample is crowded."""
_NOT_CLOSE = 4


class Contacts(NamedTuple):
    """What decides which rows, which are the restrained atoms, may touch."""

    atoms: Tensor
    """[R], of the rows; rising."""
    kind: Tensor
    """[R], the number of each one's type; so are `model`, `conformer` and `exclusion` of rows."""
    model: Tensor
    conformer: Tensor
    exclusion: Tensor
    special: Tensor
    """[R], whether it is on a special position."""
    listed_square: Tensor
    """[T, T] in Å², the square of the distance up to which pairs are listed."""
    contact: Tensor
    """[2, T, T] in Å, k_rep times the contact distance; the second one for three bonds between."""
    close_keys: Tensor
    """[E], numbers of pairs of rows that are up to three bonds apart; rising."""
    close_bonds: Tensor
    """[E]"""


def contacts_of(restraints: Restraints, buffer: float) -> Contacts:
    """Returns the tables of restraints; pairs are listed so much farther than they touch, in Å."""
    (atoms,) = np.nonzero(restraints["atom_mask"])
    tables = np.stack([restraints["nonbonded_distance"], restraints["nonbonded_distance_1_4"]])
    contact = restraints["nonbonded_function"][1] * tables
    image = to_image(restraints)
    first, second = restraints["close_atoms"].T
    chosen = ~image & (first < second)
    keys, bonds = close_tables(restraints, chosen, np.zeros(chosen.sum(), np.int64), 1)
    kind, model, conformer, exclusion = (
        torch.tensor(restraints[f"nonbonded_{name}"][atoms].astype(np.int64))
        for name in ("type", "model", "conformer", "symmetry_exclusion")
    )
    return Contacts(
        atoms=torch.tensor(atoms),
        kind=kind,
        model=model,
        conformer=conformer,
        exclusion=exclusion,
        special=torch.tensor(np.isin(atoms, restraints["special_atoms"])),
        listed_square=torch.tensor((contact.max(0) + buffer) ** 2),
        contact=torch.tensor(contact),
        close_keys=keys,
        close_bonds=bonds,
    )


def to_image(restraints: Restraints) -> NDArray[np.bool_]:
    """Returns which close pairs [E] are of an atom and an image."""
    return np.asarray((restraints["close_operator"] != 0) | restraints["close_shift"].any(axis=1))


def close_tables(
    restraints: Restraints, chosen: NDArray[np.bool_], image: NDArray[Any], images: int
) -> tuple[Tensor, Tensor]:
    """Returns the numbers [E] of chosen close pairs, rising, and the bonds between them [E].

    `image` [E] numbers the image of each second atom, of so many.
    """
    mask = restraints["atom_mask"]
    first, second = (np.cumsum(mask) - 1)[restraints["close_atoms"][chosen].T]
    keys = (first * mask.sum() + second) * images + image
    order = np.argsort(keys, kind="stable")
    bonds = restraints["close_bonds"][chosen].astype(np.int64)
    return torch.tensor(keys[order]), torch.tensor(bonds[order])


def between(keys: Tensor, bonds: Tensor, wanted: Tensor) -> Tensor:
    """Returns the bonds between pairs of those numbers; 4 stands for any more."""
    if not len(keys):
        return torch.full_like(wanted, _NOT_CLOSE)
    at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[at] == wanted, bonds[at], _NOT_CLOSE)


def meet(contacts: Contacts, first: Tensor, second: Tensor, *, images: bool) -> Tensor:
    """Returns which pairs of rows nothing keeps from touching, bonds apart."""
    a, b = contacts.conformer[first], contacts.conformer[second]
    may = (contacts.model[first] == contacts.model[second]) & ((a == b) | (a == 0) | (b == 0))
    excluded = contacts.exclusion[first]
    excludes = (excluded != 0) & (excluded == contacts.exclusion[second])
    if not images:
        excludes &= contacts.special[first] | contacts.special[second]
    return may & ~excludes
