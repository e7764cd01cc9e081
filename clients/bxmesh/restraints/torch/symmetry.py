"""Bonds and contacts between atoms and images of the model.

Each counts half, as the other atom sees it too. To an atom on a special position there are fewer images than
back; there the gradient is that of the first atom alone, with the other held.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.torch.bonded import Bonds
from bxmesh.restraints.torch.functions import placed
from bxmesh.restraints.torch.terms import keep

__all__ = ["SymmetryBonds", "frames", "halves", "to_images"]


class SymmetryBonds(Bonds):
    """Bonds to images of the model."""

    rotation: Tensor
    offset: Tensor
    held: Tensor

    def __init__(self, restraints: Restraints) -> None:
        super().__init__(restraints, "symmetry_bond")
        rotation, offset = frames(
            restraints, restraints["symmetry_bond_operator"], restraints["symmetry_bond_shift"]
        )
        held = np.isin(restraints["symmetry_bond_atoms"], restraints["special_atoms"]).any(1)
        keep(self, rotation=rotation, offset=offset, held=held)

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        a, b = placed(sites, self.atoms).unbind(2)
        vectors = to_images(a, b, self.rotation, self.offset, self.held)
        return halves(self.of_vectors(vectors), self.held).sum(-1)


def frames(
    restraints: Restraints, operator: NDArray[Any], shift: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns what images [M] are rotated by [3, 3, 1, M] and then moved by [3, 1, M], in Å."""
    to_space, to_cell = restraints["orthogonalization"], restraints["fractionalization"]
    rotation = to_space @ restraints["symmetry_rotations"][operator] @ to_cell
    cells = restraints["symmetry_translations"][operator] + shift
    return rotation.transpose(1, 2, 0)[:, :, np.newaxis], (to_space @ cells.T)[:, np.newaxis]


def to_images(a: Tensor, b: Tensor, rotation: Tensor, offset: Tensor, held: Tensor) -> Tensor:
    """Returns vectors [3, ...] from atoms a to the images of b, both [3, ...] in Å.

    `rotation` [3, 3, ...] and `offset` [3, ...] in Å. The derivative by b is left out where it is `held`.
    """
    b = torch.where(held, b.detach(), b)
    # In float64, as far from the origin this is a difference of large numbers.
    return ((rotation * b.double()).sum(1) + offset - a.double()).to(a.dtype)


def halves(energies: Tensor, held: Tensor) -> Tensor:
    """Halves energies, and derivatives save where one atom is held and the other has it all."""
    return torch.where(held, energies - 0.5 * energies.detach(), 0.5 * energies)
