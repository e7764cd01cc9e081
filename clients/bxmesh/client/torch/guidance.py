"""Guidance of diffusion models by a target's gradient at the predicted structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bxmesh.client.names import invalid
from bxmesh.client.torch.atom_map import AtomMap
from bxmesh.client.torch.targets import Target

__all__ = [
    "BoltzPotential",
    "Guidance",
    "SampleworksReward",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "linear",
]

Schedule = Callable[[float], float]
"""The weight at a progress between 0, where sampling begins, and 1, where it ends."""


def constant(weight: float) -> Schedule:
    """The same weight all along."""
    return lambda progress: weight


def linear(start: float, end: float) -> Schedule:
    """From one weight to another in a straight line."""
    return lambda progress: start + (end - start) * progress


def cosine(start: float, end: float) -> Schedule:
    """From one weight to another along half a cosine, slow at both ends."""
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def exponential(start: float, end: float) -> Schedule:
    """From one weight to another by a constant factor; both are positive."""
    return lambda progress: start * (end / start) ** progress


class Guidance:
    """How a step of sampling is moved: minus the weighted, clipped gradient at the prediction of x0.

    The gradient is taken at the denoised coordinates alone, not through the denoiser. A sample that
    the target cannot compute is not moved.
    """

    def __init__(
        self,
        target: Callable[[Tensor], Tensor],
        weight: float | Schedule = 1.0,
        *,
        every: int = 1,
        start: float = 0.0,
        end: float = 1.0,
        clip: float | None = None,
        clip_by: Literal["atom", "sample"] = "atom",
    ) -> None:
        """Takes the weight, how often and over which part of the sampling the target is asked, and
        the longest that the move of an atom, or of a whole sample, may be in angstrom."""
        if every < 1:
            raise invalid("every", f"every {every} steps makes no sense; 1 is the least")
        if not 0 <= start <= end <= 1:
            raise invalid("start", f"0 ≤ start ≤ end ≤ 1 is due, not {start} and {end}")
        if clip is not None and not clip > 0:
            raise invalid("clip", f"a length of {clip} Å is too small")
        self._target = target
        self._weight = weight if callable(weight) else constant(weight)
        self._every = every
        self._start = start
        self._end = end
        self._clip = clip
        self._clip_by = clip_by

    def __call__(self, x0: Tensor, step: int, steps: int) -> Tensor:
        """Returns what to add to the prediction x0 [..., N, 3] at this of so many steps, from 0."""
        progress = step / max(1, steps - 1)
        if step % self._every or not self._start <= progress <= self._end:
            return torch.zeros_like(x0)
        energies, gradients = _evaluated(self._target, x0)
        move = -self._weight(progress) * gradients
        if self._clip is not None:
            dims = (-1,) if self._clip_by == "atom" else tuple(range(energies.ndim, x0.ndim))
            norm = torch.linalg.vector_norm(move, dim=dims, keepdim=True)
            move = move * (self._clip / norm.clamp_min(self._clip))
        return move


class SampleworksReward:
    """A target as a reward function of sampleworks (RewardFunctionProtocol, and its `prepare`).

    It returns the weighted sum of the energies; as there, less is better, and the scaler
    differentiates. Elements, B factors and occupancies are the model's own and are not looked at.
    """

    def __init__(self, target: Target, weight: float = 1.0) -> None:
        self._target = target
        self._weight = weight
        self._atom_map: AtomMap | None = None

    def prepare(self, atom_array: Any, *, device: torch.device | str = "cpu") -> None:
        """Finds the model's atoms among those of the sampler, a biotite AtomArray."""
        self._atom_map = AtomMap.of_atom_array(self._target.model, atom_array, missing="file")

    def __call__(
        self,
        coordinates: Tensor,
        elements: Tensor,
        b_factors: Tensor,
        occupancies: Tensor,
        unique_combinations: Tensor | None = None,
        inverse_indices: Tensor | None = None,
    ) -> Tensor:
        """Returns a scalar for coordinates [B, N, 3] in the order that `prepare` was given."""
        sites = coordinates if self._atom_map is None else self._atom_map.to_model(coordinates)
        energies: Tensor = self._target(sites)
        return self._weight * energies[torch.isfinite(energies)].sum()


class BoltzPotential:
    """A target as a potential of Boltz-2: `compute_parameters`, `compute`, `compute_gradient`.

    Append it to the potentials of a sampler that steers. Coordinates are [samples, atoms, 3], padded
    as `feats["atom_pad_mask"]` says; the target's atom map is over the atoms without padding.
    """

    def __init__(
        self,
        target: Callable[[Tensor], Tensor],
        guidance_weight: float | Schedule = 1e-3,
        *,
        guidance_interval: int = 1,
        resampling_weight: float = 0.0,
    ) -> None:
        self._target = target
        self._guidance_weight = guidance_weight
        self.parameters = {
            "guidance_interval": guidance_interval,
            "guidance_weight": guidance_weight,
            "resampling_weight": resampling_weight,
        }

    def compute_parameters(self, t: float) -> dict[str, Any]:
        """Returns the parameters at Boltz' time t: 1 where sampling begins, 0 where it ends."""
        weight = self._guidance_weight
        if callable(weight):
            weight = weight(1 - t)
        return {**self.parameters, "guidance_weight": weight}

    def compute(
        self, coords: Tensor, feats: Mapping[str, Tensor], parameters: Mapping[str, Any]
    ) -> Tensor:
        """Returns the energies [samples]; zero for one that cannot be computed."""
        with torch.no_grad():
            energies = self._target(coords[..., _present(feats, coords), :])
        return torch.nan_to_num(energies, nan=0.0)

    def compute_gradient(
        self, coords: Tensor, feats: Mapping[str, Tensor], parameters: Mapping[str, Any]
    ) -> Tensor:
        """Returns the gradients [samples, atoms, 3], zero on padding."""
        present = _present(feats, coords)
        gradients = torch.zeros_like(coords)
        _, gradients[..., present, :] = _evaluated(self._target, coords[..., present, :])
        return gradients


def _evaluated(target: Callable[[Tensor], Tensor], coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Returns energies and gradients at coordinates, under no_grad and inference_mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        here = coordinates.detach().clone().requires_grad_(True)
        energies = target(here)
        (gradients,) = torch.autograd.grad(energies.sum(), here)
    return energies.detach(), gradients


def _present(feats: Mapping[str, Tensor], coords: Tensor) -> Tensor:
    return feats["atom_pad_mask"].reshape(-1, coords.shape[-2])[0].bool()
