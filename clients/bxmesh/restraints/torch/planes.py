"""Planes and parallel planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.torch.eigenvectors import least_eigenvector
from bxmesh.restraints.torch.functions import DEGREE, beyond_slack, cross, dot, length, placed
from bxmesh.restraints.torch.terms import keep

__all__ = ["Parallelities", "Planarities"]

_TINY = 1e-100
_SMALL = 16


class _Fit(torch.autograd.Function):
    """Least-squares planes through points around their centre.

    The first derivative of the energy needs no derivative of the normal, as that is where the energy is
    least: it is exact where two normals fit equally well, too. That of the normal is by perturbation.
    """

    @staticmethod
    def forward(offsets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normal = least_eigenvector(_spread(offsets, weight))
        distance = dot(normal[:, :, None], offsets)
        return (weight * distance * distance).sum(-2), normal

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        by_energy, by_normal = gradients
        offsets, weight, normal = ctx.saved_tensors
        distance = dot(normal[:, :, None], offsets)
        along = None
        if by_energy is not None:
            along = (2 * by_energy[:, None] * weight * distance) * normal[:, :, None]
        if by_normal is not None:
            pull = _perturbed(_spread(offsets, weight), normal, by_normal)[:, :, None]
            turned = weight * (pull * distance + dot(pull, offsets) * normal[:, :, None])
            along = turned if along is None else along + turned
        return along, None


def _spread(offsets: Tensor, weight: Tensor) -> Tensor:
    """Weighted offsets [3, B, K, P] and [K, P] to tensors [3, 3, B, P]."""
    return ((weight * offsets)[:, None] * offsets[None]).sum(-2)


def _perturbed(tensor: Tensor, normal: Tensor, pull: Tensor) -> Tensor:
    """Returns Σ a (a · pull) / (λ − λₐ) over the other axes a of tensors [3, 3, B, P]."""
    values, axes = torch.linalg.eigh(tensor.permute(2, 3, 0, 1))
    gaps = values[..., :1] - values[..., 1:]
    apart = gaps.abs() > _TINY if tensor.dtype == torch.float64 else gaps != 0
    others = axes[..., 1:]
    along = (others * pull.permute(1, 2, 0)[..., None]).sum(-2)
    along = torch.where(apart, along / torch.where(apart, gaps, 1.0), 0.0)
    return torch.sum(others * along[..., None, :], -1).permute(2, 0, 1)


class Planarities(nn.Module):
    """Sums of w d² to least-squares planes."""

    def __init__(self, restraints: Restraints) -> None:
        super().__init__()
        offsets, atoms, weights = (
            restraints[f"planarity_{name}"] for name in ("offsets", "atoms", "weight")
        )
        large = np.diff(offsets) > _SMALL
        # One large plane should not make all others as large.
        self.groups = nn.ModuleList(
            _Planes(offsets, atoms, weights, chosen) for chosen in (~large, large) if chosen.any()
        )

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        energies = sites.new_zeros(sites.shape[1])
        for planes in self.groups:
            energies = energies + planes(sites)[0].sum(-1)
        return energies


class Parallelities(nn.Module):
    """Pairs of planes at an angle."""

    numbers: Tensor
    topped: Tensor

    def __init__(self, restraints: Restraints) -> None:
        super().__init__()
        self.first, self.second = (
            _Planes(offsets, atoms, np.ones(len(atoms)), np.ones(len(offsets) - 1, bool))
            for offsets, atoms in (
                [restraints[f"parallelity_{side}_{name}"] for name in ("offsets", "atoms")]
                for side in ("first", "second")
            )
        )
        columns = [
            restraints[f"parallelity_{name}"] for name in ("ideal", "weight", "slack", "limit")
        ]
        keep(self, numbers=np.stack(columns), topped=restraints["parallelity_top_out"])

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        ideal, weight, slack, limit = self.numbers.to(sites.dtype).unbind(0)
        (_, n1), (_, n2) = self.first(sites), self.second(sites)
        angle = torch.atan2(length(cross(n1, n2)), dot(n1, n2).abs()) / DEGREE
        delta = beyond_slack(angle - ideal, slack)
        # 1 − cos x = 2 sin² x/2
        depth = 2 * torch.sin(delta * (DEGREE / 2)).square()
        square = limit * limit
        energy = torch.where(self.topped, -square * torch.expm1(-depth / square), depth)
        return (weight * energy).sum(-1)


class _Planes(nn.Module):
    """Some of the planes; places to spare are of no weight."""

    atoms: Tensor
    weight: Tensor

    def __init__(
        self,
        offsets: NDArray[Any],
        atoms: NDArray[Any],
        weights: NDArray[Any],
        chosen: NDArray[np.bool_],
    ) -> None:
        super().__init__()
        starts, sizes = offsets[:-1][chosen], np.diff(offsets)[chosen]
        steps = np.arange(sizes.max())[:, np.newaxis]
        inside = steps < sizes
        places = starts + np.where(inside, steps, 0)
        weight = np.where(inside, weights[places], 0.0)
        keep(self, atoms=atoms[places].astype(np.int64), weight=weight)

    def forward(self, sites: Tensor) -> tuple[Tensor, Tensor]:
        """Sites [3, B, N] to the planes' energies [B, P] and normals [3, B, P]."""
        points, weight = placed(sites, self.atoms), self.weight.to(sites.dtype)
        # From an atom of the plane: what is left is small, and its digits are good ones.
        offsets = points - points[:, :, :1]
        centre = (weight * offsets).sum(2, keepdim=True) / weight.sum(0)
        fit: Any = _Fit.apply
        energy, normal = fit(offsets - centre, weight)
        return energy, normal
