"""What an evaluation on a device answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

__all__ = ["Evaluation", "Status"]


class Status(Enum):
    """What became of one sample; the same names and values as of the evaluator on the processor.

    That one is in a module which needs numba.
    """

    OK = "ok"
    """Computed."""
    NON_FINITE = "non_finite"
    """Coordinates of restrained atoms, or the energy, are NaN or infinite."""
    OUT_OF_RANGE = "out_of_range"
    """A restrained atom is more than 10 000 Å from the origin on an axis."""
    EXPLODED = "exploded"
    """Atoms up to three bonds apart are farther from each other than `max_bond_distance`."""
    CROWDED = "crowded"
    """Millions of pairs of atoms are in contact."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The restraints at a batch of coordinates; tensors on their device, in their type."""

    energies: Tensor
    """[B], the sum of all terms; NaN where the status is not OK."""
    terms: Mapping[str, Tensor] = field(repr=False)
    """[B] for each of TERMS; NaN where the status is not OK."""
    gradients: Tensor = field(repr=False)
    """[B, N, 3], energy per Å; zero for atoms without restraints and where the status is not OK."""
    statuses: tuple[Status, ...]
    """What became of each sample."""
    pairs: Tensor = field(repr=False)
    """[B], how many pairs of atoms were listed as near; depends on what was evaluated before."""
    term_gradients: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """[B, N, 3] for each of TERMS when they were asked for; they add up to `gradients`."""
