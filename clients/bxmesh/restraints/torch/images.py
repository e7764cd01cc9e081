"""Pairs of atoms and images by symmetry that are near each other, found in periodic cells."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.torch.cells import Runs, blocks
from bxmesh.restraints.torch.contacts import (
    MOST_PAIRS,
    Contacts,
    between,
    close_tables,
    meet,
    to_image,
)

__all__ = ["ImagePairs", "Lattice", "image_pairs", "lattice_of"]

_MOST_CELLS = 64
_AT_ONCE = 2**22


class Lattice(NamedTuple):
    """The images of the model and where to look for them."""

    to_cell: Tensor
    """[3, 3], Cartesian to fractional."""
    to_space: Tensor
    """[3, 3], its inverse."""
    rotation: Tensor
    """[S, 3, 3], of fractional coordinates."""
    translation: Tensor
    """[S, 3]"""
    margin: Tensor
    """[3], how far contacts reach in fractions of the cell."""
    size: Tensor
    """[3], how many cells to search in are along each edge."""
    steps: Tensor
    """[.., 3], to the cells that are looked at from one."""
    row: Tensor
    """[I], whose image each is of all that differ."""
    operator: Tensor
    """[I], the one that leads to it."""
    image_shifts: Tensor
    """[U], by how many cells images that are close are moved, packed in a number; rising."""
    image_keys: Tensor
    """[E], numbers of a row, another, an operator and one of the shifts; rising."""
    image_bonds: Tensor
    """[E]"""


class ImagePairs(NamedTuple):
    """Pairs of an atom and an image, as each atom sees them; atoms by their place in [B · N]."""

    first: Tensor
    """[P]"""
    second: Tensor
    """[P]"""
    contact: Tensor
    """[P] in Å, k_rep times the contact distance."""
    operator: Tensor
    """[P]"""
    shift: Tensor
    """[P, 3], whole cells after the operator."""
    held: Tensor
    """[P], whether one is on a special position, so that there are fewer images back."""
    crowded: Tensor
    """[B], which samples have too many pairs to be listed."""


def lattice_of(restraints: Restraints, reach: float) -> Lattice:
    """Returns the images of restraints; contacts reach so many Å."""
    to_cell = restraints["fractionalization"]
    margin = reach * np.sqrt((to_cell**2).sum(1))
    size = np.floor(1 / margin).clip(1, _MOST_CELLS)
    spans = (range(-span, span + 1) for span in np.ceil(margin * size).astype(int))
    row, operator = np.nonzero(_distinct(restraints))
    chosen = to_image(restraints)
    shifts, shift = np.unique(
        _packed(restraints["close_shift"][chosen].astype(np.int64)), return_inverse=True
    )
    image = restraints["close_operator"][chosen] * len(shifts) + shift
    images = len(restraints["symmetry_rotations"]) * len(shifts)
    keys, bonds = close_tables(restraints, chosen, image, images)
    return Lattice(
        to_cell=torch.tensor(to_cell),
        to_space=torch.tensor(restraints["orthogonalization"]),
        rotation=torch.tensor(restraints["symmetry_rotations"].astype(np.float64)),
        translation=torch.tensor(restraints["symmetry_translations"]),
        margin=torch.tensor(margin),
        size=torch.tensor(size.astype(np.int64)),
        steps=torch.tensor(list(product(*spans))),
        row=torch.tensor(row),
        operator=torch.tensor(operator),
        image_shifts=torch.tensor(shifts),
        image_keys=keys,
        image_bonds=bonds,
    )


def _distinct(restraints: Restraints) -> NDArray[Any]:
    """Returns which operators lead to an image of its own of each row [R, S]."""
    distinct = np.ones((restraints.n_atoms, len(restraints["symmetry_rotations"])), bool)
    special = restraints["special_atoms"]
    distinct[special] = False
    owner = np.repeat(special, np.diff(restraints["special_offsets"]))
    distinct[owner, restraints["special_operators"]] = True
    return np.asarray(distinct[restraints["atom_mask"]])


def image_pairs(sites: Tensor, good: Tensor, contacts: Contacts, lattice: Lattice) -> ImagePairs:
    """Returns the pairs that may touch in the good [B] of samples of sites [3, B, N]."""
    each = len(lattice.row) + len(lattice.steps) * len(contacts.atoms) + int(lattice.size.prod())
    at_once = max(1, _AT_ONCE // each)
    parts = [
        _image_pairs(some, those, contacts, lattice)
        for some, those in zip(sites.split(at_once, 1), good.split(at_once), strict=True)
    ]
    atoms = sites.shape[2]
    firsts = range(0, sites.shape[1] * atoms, at_once * atoms)
    return ImagePairs(
        torch.cat([part.first + first for part, first in zip(parts, firsts, strict=True)]),
        torch.cat([part.second + first for part, first in zip(parts, firsts, strict=True)]),
        *(torch.cat(columns) for columns in zip(*(part[2:] for part in parts), strict=True)),
    )


def _image_pairs(sites: Tensor, good: Tensor, contacts: Contacts, lattice: Lattice) -> ImagePairs:
    samples, atoms = sites.shape[1:]
    rows = len(contacts.atoms)
    places = _places(sites.index_select(-1, contacts.atoms), lattice)
    if len(lattice.rotation) == 1:
        good = good & _reaches_itself(places, lattice.margin)
        if not good.any():
            return _none(sites)
    home = places.floor()
    own = places - home
    rotation, translation = (
        lattice.rotation[lattice.operator],
        lattice.translation[lattice.operator],
    )
    at = (rotation * places[:, lattice.row, None, :]).sum(-1) + translation
    floor = at.floor()
    wrapped = at - floor
    keys, order = _keys(_cell(wrapped, lattice), lattice).flatten().sort(stable=True)
    around = _cell(own, lattice)[:, :, None] + lattice.steps
    turns = around.div(lattice.size, rounding_mode="floor")
    cells = _keys(around - turns * lattice.size, lattice)
    runs = _runs(keys, cells, good, lattice.size)
    # In the order of the points, and of the runs.
    row, operator = lattice.row.repeat(samples)[order], lattice.operator.repeat(samples)[order]
    wrapped, floor = wrapped.flatten(0, 1)[order], floor.flatten(0, 1)[order]
    own, home, turns = own.flatten(0, 1), home.flatten(0, 1), turns.flatten(0, 2)

    farthest = contacts.listed_square.max()
    counts = torch.zeros(samples, dtype=torch.long, device=sites.device)
    crowded = counts > MOST_PAIRS
    found = []
    for run, query, point in blocks(runs, crowded):
        vector = (wrapped[point] + turns[run] - own[query]) @ lattice.to_space.T
        square = vector.square().sum(-1)
        (near,) = torch.nonzero(square <= farthest, as_tuple=True)
        run, query, point, square = (each[near] for each in (run, query, point, square))
        first, second, by = query % rows, row[point], operator[point]
        shift = turns[run] + (home[query] - floor[point]).long()
        bonds = _between(lattice, first * rows + second, by, shift)
        may = square <= contacts.listed_square[contacts.kind[first], contacts.kind[second]]
        may &= (by != 0) | shift.any(-1)
        may &= (bonds >= 3) & meet(contacts, first, second, images=True)
        sample = query // rows
        counts += torch.bincount(sample[may], minlength=samples)
        torch.gt(counts, MOST_PAIRS, out=crowded)
        found.append([each[may] for each in (sample, first, second, by, bonds, shift)])
    if not found:
        return _none(sites)
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    keep = ~crowded[columns[0]]
    sample, first, second, by, bonds, shift = (column[keep] for column in columns)
    start = sample * atoms
    return ImagePairs(
        start + contacts.atoms[first],
        start + contacts.atoms[second],
        contacts.contact[(bonds == 3).long(), contacts.kind[first], contacts.kind[second]],
        by,
        shift,
        contacts.special[first] | contacts.special[second],
        crowded,
    )


def _none(sites: Tensor) -> ImagePairs:
    none = torch.empty(0, dtype=torch.long, device=sites.device)
    crowded = torch.zeros(sites.shape[1], dtype=torch.bool, device=sites.device)
    return ImagePairs(none, none, none.double(), none, none.reshape(0, 3), none.bool(), crowded)


def _places(sites: Tensor, lattice: Lattice) -> Tensor:
    """Sites [3, B, R] in Å to fractional coordinates [B, R, 3]."""
    return sites.double().permute(1, 2, 0) @ lattice.to_cell.T


def _reaches_itself(places: Tensor, margin: Tensor) -> Tensor:
    """Returns which samples may be near an image by whole cells, from their extent."""
    extent = places.amax(1) - places.amin(1) + margin
    return ~(extent.amax(1) < 1)


def _cell(places: Tensor, lattice: Lattice) -> Tensor:
    return torch.minimum((places * lattice.size).long(), lattice.size - 1)


def _keys(cells: Tensor, lattice: Lattice) -> Tensor:
    """Numbers of cells [B, ..., 3] in all samples."""
    sample = torch.arange(len(cells), device=cells.device).reshape(-1, *[1] * (cells.ndim - 2))
    x, y, z = cells.unbind(-1)
    return ((sample * lattice.size[0] + x) * lattice.size[1] + y) * lattice.size[2] + z


def _runs(keys: Tensor, cells: Tensor, good: Tensor, size: Tensor) -> Runs:
    """Returns the points, by their rising keys, in the cells [B, R, steps] around each row."""
    samples, rows, steps = cells.shape
    every = torch.arange(samples * int(size.prod()) + 1, device=keys.device)
    starts = torch.searchsorted(keys, every)
    wanted = cells.flatten()
    start = starts.index_select(0, wanted)
    length = starts.index_select(0, wanted + 1) - start
    run = torch.arange(len(wanted), device=keys.device)
    sample = run // (rows * steps)
    return Runs(run // steps, sample, start, torch.where(good[sample], length, 0))


def _between(lattice: Lattice, rows: Tensor, operator: Tensor, shift: Tensor) -> Tensor:
    """Returns the bonds between pairs of rows, numbered, and images; 4 stands for any more."""
    shifts = len(lattice.image_shifts)
    if not shifts:
        return between(lattice.image_keys, lattice.image_bonds, rows)
    packed = _packed(shift)
    at = torch.searchsorted(lattice.image_shifts, packed).clamp_max(shifts - 1)
    key = (rows * len(lattice.rotation) + operator) * shifts + at
    known = lattice.image_shifts[at] == packed
    return between(lattice.image_keys, lattice.image_bonds, torch.where(known, key, -1))


def _packed(shift: Any) -> Any:
    """Returns numbers [...] of shifts [..., 3] of less than 2^20 cells."""
    shift = shift + 2**20
    return (shift[..., 0] * 2**21 + shift[..., 1]) * 2**21 + shift[..., 2]
