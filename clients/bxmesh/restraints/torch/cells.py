"""Pairs of atoms of the model that are near each other, found in columns of cells.

Atoms are sorted by sample, column and height; those that an atom may touch are then five runs. There is
no grid in memory, so that it does not matter how far atoms are spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from bxmesh.restraints.torch.contacts import MOST_PAIRS, Contacts, between, meet

__all__ = ["Pairs", "Runs", "blocks", "near_pairs"]

# Candidates looked at together: what stays in a cache, or keeps a GPU busy.
_AT_ONCE_ON_CPU, _AT_ONCE_ON_GPU = 2**18, 2**22
# Half of the columns around one, which do not look into it in turn.
_COLUMNS = ((0, 1), (1, -1), (1, 0), (1, 1))
_LEAST_EDGE = 1.0
# Steps of height within the edge of a column: the finer, the fewer atoms in a run are too far.
_STEPS = 16


class Pairs(NamedTuple):
    """Pairs within the model, each once; atoms by their place in [B · N]."""

    first: Tensor
    """[P]"""
    second: Tensor
    """[P]"""
    contact: Tensor
    """[P] in Å, k_rep times the contact distance."""
    crowded: Tensor
    """[B], which samples have too many pairs to be listed."""


class Runs(NamedTuple):
    """The points that queries are compared with; a query has several runs."""

    query: Tensor
    """[Q]"""
    sample: Tensor
    """[Q]; rising."""
    start: Tensor
    """[Q], the first point of the run."""
    length: Tensor
    """[Q], how many points are in it."""


def blocks(runs: Runs, crowded: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields runs, and of which of them and which point each candidate is, some at once.

    Samples of which no more are wanted may be told meanwhile in `crowded` [B].
    """
    ends = runs.length.cumsum(0)
    every = int(ends[-1])
    at_once = _AT_ONCE_ON_CPU if ends.device.type == "cpu" else _AT_ONCE_ON_GPU
    steps = torch.tensor(range(at_once, every, at_once), device=ends.device)
    edges = [0, *(torch.searchsorted(ends, steps) + 1).tolist(), len(ends)]
    for first, last in pairwise(edges):
        count = runs.length[first:last]
        if first:
            count = torch.where(crowded[runs.sample[first:last]], 0, count)
        before = count.cumsum(0) - count
        chosen = torch.arange(first, last, device=ends.device)
        if total := int(count.sum()):
            run = torch.repeat_interleave(chosen, count, output_size=total)
            offset = torch.repeat_interleave(
                runs.start[first:last] - before, count, output_size=total
            )
            point = torch.arange(total, device=ends.device) + offset
            yield run, runs.query.index_select(0, run), point


def near_pairs(sites: Tensor, good: Tensor, contacts: Contacts) -> Pairs:
    """Returns the pairs that may touch in the good [B] of samples of sites [3, B, N]."""
    samples, atoms = sites.shape[1:]
    rows = len(contacts.atoms)
    points = sites.index_select(-1, contacts.atoms)
    order, runs = _runs(points, good, contacts.listed_square.max().sqrt().to(sites.dtype))
    places = points.flatten(1).T.index_select(0, order)
    row, sample = order % rows, order // rows
    kind = contacts.kind[row]
    listed = contacts.listed_square.to(sites.dtype)
    farthest = listed.max()
    counts = torch.zeros(samples, dtype=torch.long, device=sites.device)
    crowded = counts > MOST_PAIRS
    found = [torch.empty(2, 0, dtype=torch.long, device=sites.device)]
    for _, query, point in blocks(runs, crowded):
        # On processors index_select is twice as fast as brackets.
        step = places.index_select(0, query) - places.index_select(0, point)
        square = step.square().sum(1)
        (near,) = torch.nonzero(square <= farthest, as_tuple=True)
        a, b = query[near], point[near]
        near = square[near] <= listed[kind[a], kind[b]]
        pairs = torch.stack([a, b])[:, near]
        counts += torch.bincount(sample[pairs[0]], minlength=samples)
        torch.gt(counts, MOST_PAIRS, out=crowded)
        found.append(pairs)
    first, second = torch.cat(found, 1)
    sample = sample[first]
    low, high = torch.aminmax(torch.stack([row[first], row[second]]), dim=0)
    bonds = between(contacts.close_keys, contacts.close_bonds, low * rows + high)
    may = (bonds >= 3) & meet(contacts, low, high, images=False) & ~crowded[sample]
    low, high, bonds, start = low[may], high[may], bonds[may], sample[may] * atoms
    return Pairs(
        start + contacts.atoms[low],
        start + contacts.atoms[high],
        contacts.contact[(bonds == 3).long(), contacts.kind[low], contacts.kind[high]],
        crowded,
    )


def _runs(sites: Tensor, good: Tensor, reach: Tensor) -> tuple[Tensor, Runs]:
    """Returns the order of points [B · R] of sites [3, B, R] in Å, and their runs in that order."""
    _, samples, rows = sites.shape
    edge = reach.clamp_min(_LEAST_EDGE).reshape(1, 1, 1).repeat(3, 1, 1)
    edge[2] /= _STEPS
    cells = (sites / edge).floor().long()
    # A rim around keeps columns apart.
    cells = (
        cells
        - cells.amin(2, keepdim=True)
        + torch.tensor([1, 1, _STEPS], device=sites.device).reshape(3, 1, 1)
    )
    x, y, z = cells.amax((1, 2)) + 2
    z = z + _STEPS
    sample = torch.arange(samples, device=sites.device)[:, None]
    keys = ((sample * x + cells[0]) * y + cells[1]) * z + cells[2]
    keys, order = keys.flatten().sort(stable=True)
    own = torch.arange(1, len(keys) + 1, device=sites.device)
    starts, ends = [own], [torch.searchsorted(keys, keys + _STEPS, right=True)]
    for step_x, step_y in _COLUMNS:
        beside = keys + (step_x * y + step_y) * z
        starts.append(torch.searchsorted(keys, beside - _STEPS))
        ends.append(torch.searchsorted(keys, beside + _STEPS, right=True))
    start = torch.stack(starts, 1)
    sample = order // rows
    count = torch.where(good[sample, None], torch.stack(ends, 1) - start, 0)
    query = (own - 1)[:, None].expand_as(start)
    return order, Runs(
        *(each.flatten() for each in (query, sample[:, None].expand_as(start), start, count))
    )
