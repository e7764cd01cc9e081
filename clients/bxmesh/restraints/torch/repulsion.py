"""Repulsion of atoms in contact: c_rep (max(0, contact^irexp − distance^irexp))^rexp."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.torch.cells import Pairs
from bxmesh.restraints.torch.functions import dot, floor_of
from bxmesh.restraints.torch.images import ImagePairs
from bxmesh.restraints.torch.neighbours import Found
from bxmesh.restraints.torch.symmetry import halves, to_images
from bxmesh.restraints.torch.terms import keep

__all__ = ["Repulsion"]


class Repulsion(nn.Module):
    """Contacts within the model and with its images."""

    rotation: Tensor
    translation: Tensor
    to_space: Tensor

    def __init__(self, restraints: Restraints) -> None:
        super().__init__()
        self._c_rep, _, self._irexp, self._rexp = restraints["nonbonded_function"].tolist()
        to_space, to_cell = restraints["orthogonalization"], restraints["fractionalization"]
        rotation = to_space @ restraints["symmetry_rotations"] @ to_cell
        keep(
            self,
            rotation=rotation.transpose(1, 2, 0),
            translation=to_space @ restraints["symmetry_translations"].T,
            to_space=to_space,
        )

    def forward(self, sites: Tensor, pairs: Found) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        energies = self._within(sites, pairs.within)
        if pairs.to_images is None:
            return energies
        return energies + self._to_images(sites, pairs.to_images)

    def _within(self, sites: Tensor, pairs: Pairs) -> Tensor:
        flat = sites.flatten(1)
        vectors = flat.index_select(1, pairs.second) - flat.index_select(1, pairs.first)
        return _by_sample(self._of_vectors(vectors, pairs.contact), pairs.first, sites)

    def _to_images(self, sites: Tensor, pairs: ImagePairs) -> Tensor:
        flat = sites.flatten(1)
        a, b = flat.index_select(1, pairs.first), flat.index_select(1, pairs.second)
        rotation = self.rotation.index_select(2, pairs.operator)
        offset = self.translation.index_select(1, pairs.operator)
        offset = offset + self.to_space @ pairs.shift.T.double()
        energies = self._of_vectors(to_images(a, b, rotation, offset, pairs.held), pairs.contact)
        return _by_sample(halves(energies, pairs.held), pairs.first, sites)

    def _of_vectors(self, vectors: Tensor, contact: Tensor) -> Tensor:
        """Vectors [3, P] and contacts [P] in Å to energies [P].

        Atoms in one place have an energy and no gradient, as there is no direction.
        """
        contact = contact.to(vectors.dtype)
        square = dot(vectors, vectors)
        touches = square < contact * contact
        # Where nothing touches, the functions are taken at numbers at which they are tame.
        distance = torch.where(touches, square, 1.0).clamp_min(floor_of(square.dtype)).sqrt()
        if self._irexp == 1:
            depth = contact - distance
        else:
            depth = contact**self._irexp - distance**self._irexp
        deep = touches & (depth > 0)
        depth = torch.where(deep, depth, 1.0)
        power = depth.square().square() if self._rexp == 4 else depth**self._rexp
        return torch.where(deep, self._c_rep * power, 0.0)


def _by_sample(energies: Tensor, first: Tensor, sites: Tensor) -> Tensor:
    """Adds energies [P] up, by their first atoms in [B · N], to those of samples [B]."""
    _, samples, atoms = sites.shape
    # By atoms first: were all added to their samples at once, they would wait for each other.
    return (
        sites.new_zeros(samples * atoms).index_add(0, first, energies).view(samples, atoms).sum(1)
    )
