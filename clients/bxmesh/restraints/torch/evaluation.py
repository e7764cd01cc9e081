"""What an evaluation on a device answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bxmesh.restraints.status import Status

__all__ = ["Evaluation"]


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
