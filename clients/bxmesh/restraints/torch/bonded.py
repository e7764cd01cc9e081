"""Bonds, angles, dihedrals and chiral volumes: sites [3, B, N] to energies [B]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.torch.functions import (
    DEGREE,
    beyond_slack,
    cross,
    dot,
    length,
    placed,
    signed_angle,
    top_out,
    turn,
)
from bxmesh.restraints.torch.terms import Term, keep

__all__ = ["Angles", "Bonds", "Chiralities", "Dihedrals"]

_COSINE = 9600.0


class Bonds(Term):
    """Bonds within the model."""

    def __init__(self, restraints: Restraints, name: str = "bond") -> None:
        super().__init__(
            restraints, name, "ideal weight slack limit", restraints[f"{name}_top_out"]
        )
        self.any_slack = bool(restraints[f"{name}_slack"].any())

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        a, b = placed(sites, self.atoms).unbind(2)
        return self.of_vectors(b - a).sum(-1)

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """Vectors [3, B, M] between both atoms to energies [B, M]."""
        ideal, weight, slack, limit = self.in_type_of(vectors)
        delta = ideal - length(vectors)
        if self.any_slack:
            delta = beyond_slack(delta, slack)
        energy = weight * delta * delta
        if self.any_flag:
            topped = self.flags & (delta < 0)
            energy = torch.where(topped, top_out(delta, weight, limit), energy)
        return energy


class Angles(Term):
    """Bond angles. One without a direction, or straight, has no gradient."""

    def __init__(self, restraints: Restraints) -> None:
        super().__init__(restraints, "angle", "ideal weight slack")
        ideal = restraints["angle_ideal"]
        self.turns = bool(((ideal < 0) | (ideal > 180)).any())
        self.any_slack = bool(restraints["angle_slack"].any())

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        ideal, weight, slack = self.in_type_of(sites)
        i, j, k = placed(sites, self.atoms).unbind(2)
        a, b = i - j, k - j
        angle, defined = signed_angle(length(cross(a, b)), dot(a, b))
        delta = turn(angle, ideal, 360.0) if self.turns else ideal - angle
        if self.any_slack:
            delta = beyond_slack(delta, slack)
        return torch.where(defined, weight * delta * delta, 0.0).sum(-1)


class Dihedrals(Term):
    """Dihedral angles. One of whose three bonds two are in line has neither energy nor gradient."""

    cosine: Tensor
    alternatives: Tensor
    has_alternative: Tensor

    def __init__(self, restraints: Restraints) -> None:
        limit, periodicity = restraints["dihedral_limit"], restraints["dihedral_periodicity"]
        super().__init__(
            restraints,
            "dihedral",
            "ideal weight slack limit periodicity",
            restraints["dihedral_top_out"] & (limit >= 0),
        )
        self.any_cosine = bool((periodicity > 0).any())
        self.any_harmonic = bool((periodicity <= 0).any())
        self.any_slack = bool((restraints["dihedral_slack"] > 0).any())
        keep(self, cosine=periodicity > 0)
        self._keep_alternatives(restraints)

    def _keep_alternatives(self, restraints: Restraints) -> None:
        offsets, values = (
            restraints[f"dihedral_{name}"] for name in ("alternative_offsets", "alternatives")
        )
        counts = np.diff(offsets)
        has = np.arange(counts.max(initial=0))[:, np.newaxis] < counts
        padded = np.zeros(has.shape)
        padded.T[has.T] = np.where(values < 0, values + 360, values)
        keep(self, alternatives=padded, has_alternative=has)

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        ideal, weight, slack, limit, periodicity = self.in_type_of(sites)
        fold = periodicity.abs().clamp_min(1)
        i, j, k, m = placed(sites, self.atoms).unbind(2)
        a, b, c = i - j, k - j, k - m
        p, q = cross(a, b), cross(b, c)
        # p × q = b (a · q).
        angle, defined = signed_angle(length(b) * dot(a, q), dot(p, q))
        delta = turn(angle, ideal, 360 / fold)
        for number in range(len(self.alternatives)):
            other = turn(angle, self.alternatives[number].to(angle.dtype), 360.0)
            nearer = self.has_alternative[number] & (other.abs() < delta.abs())
            delta = torch.where(nearer, other, delta)
        if self.any_slack:
            delta = beyond_slack(delta, slack.clamp_min(0))
        energy = self._energy(delta, weight, limit, fold)
        return torch.where(defined, energy, 0.0).sum(-1)

    def _energy(self, delta: Tensor, weight: Tensor, limit: Tensor, fold: Tensor) -> Tensor:
        harmonic = weight * delta * delta
        if self.any_flag:
            harmonic = torch.where(self.flags, top_out(delta, weight, limit), harmonic)
        if not self.any_cosine:
            return harmonic
        # 1 − cos x = 2 sin² x/2, which does not cancel.
        sine = torch.sin(fold * delta * (DEGREE / 2))
        energy = weight * (2 * _COSINE) / (fold * fold) * sine * sine
        return torch.where(self.cosine, energy, harmonic) if self.any_harmonic else energy


class Chiralities(Term):
    """Chiral volumes. With both signs, a volume of exactly zero is taken for positive."""

    def __init__(self, restraints: Restraints) -> None:
        both_signs = restraints["chirality_both_signs"]
        super().__init__(restraints, "chirality", "ideal weight", both_signs)

    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to energies [B]."""
        ideal, weight = self.in_type_of(sites)
        centre, i, j, k = placed(sites, self.atoms).unbind(2)
        volume = dot(i - centre, cross(j - centre, k - centre))
        if self.any_flag:
            volume = torch.where(self.flags & (volume < 0), -volume, volume)
        delta = ideal - volume
        return (weight * delta * delta).sum(-1)
