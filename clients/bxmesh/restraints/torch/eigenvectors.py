"""Eigenvectors of symmetric 3×3 matrices in closed form, in batches.

Without iterations and branches there are few kernels, and none waits for the host, as solvers of cuSOLVER
do. After David Eberly, A Robust Eigensolver for 3×3 Symmetric Matrices (2014): cross products find the
eigenvector of the eigenvalue that is well apart from both others; the rest is a 2×2 problem, which loses
no digits where the least eigenvalue is a millionth of the largest, as it is of a flat plane.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bxmesh.restraints.torch.functions import cross, dot, floor_of

__all__ = ["least_eigenvector"]


@torch.no_grad()
def least_eigenvector(matrix: Tensor) -> Tensor:
    """Returns unit eigenvectors [3, ...] to the least eigenvalues of matrices [3, 3, ...].

    Where two are least, one of their eigenvectors. No gradient.
    """
    tiny = floor_of(matrix.dtype) ** 0.5
    diagonal = torch.stack([matrix[k, k] for k in range(3)])
    mean = diagonal.mean(0)
    off = matrix[0, 1].square() + matrix[0, 2].square() + matrix[1, 2].square()
    scale = (((diagonal - mean).square().sum(0) + 2 * off) / 6).sqrt().clamp_min(tiny)
    unit = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    unit = unit.reshape(3, 3, *[1] * (matrix.ndim - 2))
    # Eigenvalues 2 cos(φ), 2 cos(φ ± 120°) from 2 down to -2, and a determinant 2 cos 3φ.
    shape = (matrix - mean * unit) / scale
    half = (dot(shape[0], cross(shape[1], shape[2])) / 2).clamp(-1, 1)
    angle = half.acos() / 3
    long = half >= 0
    apart = 2 * torch.cos(torch.where(long, angle, angle + 2 * math.pi / 3))
    single = _null_vector(shape - apart * unit)
    # Two axes across it: that of the frame which is least along it, made perpendicular, and a third.
    least = single.abs().argmin(0, keepdim=True)
    first = torch.zeros_like(single).scatter_(0, least, 1.0)
    first = _unit(cross(single, first))
    second = cross(single, first)
    image_first, image_second = (_times(shape, each) for each in (first, second))
    a, b, c = dot(first, image_first), dot(first, image_second), dot(second, image_second)
    turned = 0.5 * torch.atan2(2 * b, a - c)
    # The axis of the larger eigenvalue is at that angle, and ours across it.
    across = second * torch.cos(turned) - first * torch.sin(turned)
    return torch.where(long, across, single)


def _null_vector(matrix: Tensor) -> Tensor:
    """Returns a unit vector across all rows of matrices of rank two."""
    rows = torch.linalg.cross(matrix, matrix.roll(-1, 0), dim=1)
    longest = (rows * rows).sum(1).argmax(0)
    index = longest.expand(1, 3, *longest.shape)
    return _unit(rows.gather(0, index)[0])


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector).sum(1)


def _unit(vector: Tensor) -> Tensor:
    return vector / dot(vector, vector).sqrt().clamp_min(floor_of(vector.dtype) ** 0.5)
