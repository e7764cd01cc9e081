"""Functions of vectors and angles whose derivatives of any order are finite everywhere.

Vectors have their components in the first dimension: [3, ...]. So do the sums over them run over
whole rows, which processors and GPUs like best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "beyond_slack",
    "cross",
    "dot",
    "floor_of",
    "length",
    "placed",
    "signed_angle",
    "top_out",
    "turn",
]

DEGREE = math.pi / 180


def floor_of(dtype: torch.dtype) -> float:
    """Returns the square of a length so small that it is none: where kernels give no gradient."""
    return 1e-200 if dtype == torch.float64 else 1e-36


def placed(sites: Tensor, atoms: Tensor) -> Tensor:
    """Returns the sites [3, ..., N] of atoms [A, M] as [3, ..., A, M]."""
    return sites.index_select(-1, atoms.flatten()).reshape(*sites.shape[:-1], *atoms.shape)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar products [...] of vectors [3, ...]."""
    return torch.sum(a * b, 0)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Vector products [3, ...]."""
    product: Tensor = torch.linalg.cross(a, b, dim=0)
    return product


def length(vector: Tensor) -> Tensor:
    """Lengths [...] of vectors [3, ...]; a vector without a length has no gradient."""
    return dot(vector, vector).clamp_min(floor_of(vector.dtype)).sqrt()


def signed_angle(sine: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Returns angles in degrees, and where they are defined, from multiples of sine and cosine.

    Undefined ones are 0 and have no gradient.
    """
    defined = sine * sine + cosine * cosine > 4 * floor_of(sine.dtype)
    angle = torch.atan2(torch.where(defined, sine, 0.0), torch.where(defined, cosine, 1.0))
    return angle / DEGREE, defined


def turn(start: Tensor, end: Tensor, period: Tensor | float) -> Tensor:
    """Returns the shortest turns between angles that are the same after a period, in degrees."""
    delta = end - start
    return delta - period * (delta.detach() / period).round()


def beyond_slack(delta: Tensor, slack: Tensor) -> Tensor:
    """Returns what of a deviation is beyond a slack."""
    return delta - torch.minimum(torch.maximum(delta, -slack), slack)


def top_out(delta: Tensor, weight: Tensor, limit: Tensor) -> Tensor:
    """Returns w l² (1 − exp(−δ²/l²)); 0 for a limit of 0."""
    square = limit * limit
    none = square == 0
    return -weight * square * torch.expm1(-delta * delta / torch.where(none, 1.0, square))
