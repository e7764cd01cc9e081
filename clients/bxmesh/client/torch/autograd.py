"""The energy of a target as a function that autograd knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["Evaluated", "energies_of", "on_wire"]


class Evaluated(NamedTuple):
    """What the mesh answered for a batch."""

    energies: list[float]
    """[B]; NaN for a sample that failed."""
    gradients: NDArray[Any]
    """[B, N, 3] in the type of the coordinates; zeros for a sample that failed."""


def on_wire(coordinates: Tensor) -> NDArray[Any]:
    """Returns coordinates as an array float32 or float64 on the host, in their own memory if that
    is what they are. Half precision, and what else there is, becomes float32."""
    dtype = torch.float64 if coordinates.dtype == torch.float64 else torch.float32
    array: NDArray[Any] = coordinates.detach().to("cpu", dtype).numpy()
    return array


def energies_of(coordinates: Tensor, evaluate: Callable[[NDArray[Any]], Evaluated]) -> Tensor:
    """Returns the energies [...] of coordinates [..., N, 3], with gradients.

    `evaluate` gets them as one batch [B, N, 3].
    """
    apply: Any = _TargetFunction.apply
    energies: Tensor = apply(coordinates, evaluate)
    return energies


class _TargetFunction(torch.autograd.Function):
    # The mesh gives values and gradients at once, so backward has nothing to ask for.

    @staticmethod
    def forward(
        ctx: Any, coordinates: Tensor, evaluate: Callable[[NDArray[Any]], Evaluated]
    ) -> Tensor:
        array = on_wire(coordinates)
        batch = array.shape[:-2]
        evaluated = evaluate(array.reshape(-1, *array.shape[-2:]))
        dtype = torch.float64 if array.dtype == np.float64 else torch.float32
        energies = torch.tensor(evaluated.energies, dtype=dtype, device=coordinates.device)
        # A copy: the answer is read-only memory, which torch cannot respect.
        gradients = torch.tensor(evaluated.gradients, dtype=dtype, device=coordinates.device)
        ctx.save_for_backward(coordinates, gradients.reshape(coordinates.shape))
        ctx.some_failed = any(map(math.isnan, evaluated.energies))
        return energies.reshape(batch)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (grad_energies,) = grad_outputs
        coordinates, gradients = ctx.saved_tensors
        product = gradients * grad_energies[..., None, None]
        if ctx.some_failed:
            # What multiplies a failed sample may be NaN as well, and must not spread.
            product = torch.where(gradients == 0, 0, product)
        product = product.to(coordinates.dtype)
        if torch.is_grad_enabled():
            apply: Any = _FirstOnly.apply
            product = apply(product, coordinates, grad_energies)
        return product, None


class _FirstOnly(torch.autograd.Function):
    """Lets a gradient through and refuses to differentiate it."""

    @staticmethod
    def forward(ctx: FunctionCtx, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise RuntimeError(
            "bxmesh's targets have first derivatives only: the gradient of a gradient was asked for."
            " Leave out create_graph=True, or detach the gradient before it enters a loss."
        )
