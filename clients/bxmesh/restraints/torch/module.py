"""Restraints as a module of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.layout import TERMS
from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.torch.bonded import Angles, Bonds, Chiralities, Dihedrals
from bxmesh.restraints.torch.evaluation import Evaluation, Status
from bxmesh.restraints.torch.neighbours import CODES, Neighbours, Plausibility
from bxmesh.restraints.torch.planes import Parallelities, Planarities
from bxmesh.restraints.torch.repulsion import Repulsion
from bxmesh.restraints.torch.symmetry import SymmetryBonds
from bxmesh.restraints.torch.terms import keep

__all__ = ["RestraintModule"]

_MOST_ATOMS = 250_000


class RestraintModule(nn.Module):
    """Energies of restraints at coordinates on any device, for autograd and `torch.compile`.

    Energies and gradients are those of cctbx's `energies_sites`, computed in the type of the coordinates. The
    restraints move with the module and stay in float64, whatever it is cast to.

    `isolated` leaves out images of the model by symmetry. `chunk` is how many samples are computed
    together; None is as many as have 250 000 atoms.
    """

    atom_mask: Tensor

    def __init__(
        self, restraints: Restraints, *, isolated: bool = False, chunk: int | None = None
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"The chunk is {chunk} samples; it must be at least 1.")
        self.n_atoms = restraints.n_atoms
        self.chunk = chunk or max(1, _MOST_ATOMS // restraints.n_atoms)
        self.terms = _terms(restraints, isolated=isolated)
        self.repulsion = Repulsion(restraints)
        self.neighbours = Neighbours(restraints, isolated=isolated, buffer=0.0)
        self.plausibility = Plausibility(restraints, isolated=isolated)
        keep(self, atom_mask=restraints["atom_mask"])

    def forward(self, coordinates: Tensor) -> Tensor:
        """Returns the energies [B] at coordinates [B, N, 3] or [N, 3] in Å, float32 or float64.

        All N atoms of the model's file in its order. A sample that cannot be computed has NaN and no
        gradient. Raises RestraintsError for another type or shape.
        """
        chunks = self._checked(coordinates).split(self.chunk)
        if len(chunks) == 1 or not (torch.is_grad_enabled() and coordinates.requires_grad):
            return torch.cat([self._energies(chunk) for chunk in chunks])
        # Kept for the gradient, all chunks would be in memory together.
        again: Any = checkpoint
        return torch.cat([again(self._energies, chunk, use_reentrant=False) for chunk in chunks])

    def evaluate(self, coordinates: Tensor, *, per_term: bool = False) -> Evaluation:
        """Returns energies, terms, gradients and what became of each sample; nothing has a graph."""
        chunks = self._checked(coordinates.detach()).split(self.chunk)
        parts = [self._evaluated(chunk, per_term=per_term) for chunk in chunks]
        energies, codes, gradients = zip(*parts, strict=True)
        terms = dict(zip(TERMS, torch.cat(energies, 1), strict=True))
        total, *apart = torch.cat(gradients, 1)
        statuses = tuple(Status)
        return Evaluation(
            energies=torch.cat(energies, 1).sum(0),
            terms=terms,
            gradients=total,
            statuses=tuple(statuses[code] for code in torch.cat(codes).tolist()),
            term_gradients=dict(zip(TERMS, apart, strict=True)) if per_term else {},
        )

    def _evaluated(self, chunk: Tensor, *, per_term: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Returns energies [7, B], CODES [B] and gradients [1 or 8, B, N, 3], the whole one first."""
        with torch.enable_grad():
            chunk.requires_grad_()
            energies, codes = self._computed(chunk)
            wanted = [energies.sum(0), *(energies if per_term else ())]
            gradients = torch.stack([_gradient(each, chunk) for each in wanted])
        return energies.detach(), codes, gradients

    def _energies(self, chunk: Tensor) -> Tensor:
        return self._computed(chunk)[0].sum(0)

    def _computed(self, chunk: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates [B, N, 3] to the energies [7, B] of TERMS and CODES [B]."""
        sites = torch.where(self.atom_mask, chunk.permute(2, 0, 1).contiguous(), 0.0)
        codes = self.plausibility(sites)
        good = codes == CODES[Status.OK]
        # Samples that cannot be computed are computed at the origin, to no avail and no harm.
        clean: Any = _Clean.apply
        sites = torch.where(good[:, None], clean(sites), 0.0)
        energies, crowded = self._of_terms(sites, good)
        codes = torch.where(good & crowded, CODES[Status.CROWDED], codes)
        finite = energies.detach().sum(0).isfinite()
        codes = torch.where((codes == CODES[Status.OK]) & ~finite, CODES[Status.NON_FINITE], codes)
        return torch.where(codes == CODES[Status.OK], energies, torch.nan), codes

    def _of_terms(self, sites: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
        within, to_images = self.neighbours(sites, good)
        nonbonded, crowded = self.repulsion(sites, within), within.crowded
        if to_images is not None:
            nonbonded = nonbonded + self.repulsion.of_images(sites, to_images)
            crowded = crowded | to_images.crowded
        energies = dict.fromkeys(TERMS, sites.new_zeros(sites.shape[1]))
        energies["nonbonded"] = nonbonded
        for name, term in self.terms.items():
            name = name.removeprefix("symmetry_")
            energies[name] = energies[name] + term(sites)
        return torch.stack(list(energies.values())), crowded

    def _checked(self, coordinates: Tensor) -> Tensor:
        if coordinates.dtype not in (torch.float32, torch.float64):
            raise RestraintsError(
                "COORDINATES_DTYPE",
                f"Coordinates must be float32 or float64, not {coordinates.dtype}.",
            )
        samples = coordinates[None] if coordinates.ndim == 2 else coordinates
        if samples.ndim != 3 or samples.shape[1:] != (self.n_atoms, 3) or not len(samples):
            raise RestraintsError(
                "COORDINATES_SHAPE",
                f"Coordinates have the shape {list(coordinates.shape)}; these restraints need "
                f"[B, {self.n_atoms}, 3], with every atom of the model's file in its order.",
            )
        return samples

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RestraintModule:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        apply: Any = super()._apply
        apply(moved, recurse)
        return self


def _terms(restraints: Restraints, *, isolated: bool) -> nn.ModuleDict:
    """Returns the terms of which there are restraints, save contacts."""
    kinds: dict[str, Callable[[Restraints], nn.Module]] = {
        "bond": Bonds,
        "symmetry_bond": SymmetryBonds,
        "angle": Angles,
        "dihedral": Dihedrals,
        "chirality": Chiralities,
        "planarity": Planarities,
        "parallelity": Parallelities,
    }
    if isolated:
        del kinds["symmetry_bond"]
    return nn.ModuleDict(
        {
            name: kind(restraints)
            for name, kind in kinds.items()
            if len(restraints[f"{name}_origin"])
        }
    )


class _Clean(torch.autograd.Function):
    """Nothing; gradients of samples [3, B, N] that overflowed or are not numbers become zero."""

    @staticmethod
    def forward(ctx: Any, sites: Tensor) -> Tensor:
        return sites.view_as(sites)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        finite = gradient.isfinite().all(2, keepdim=True).all(0, keepdim=True)
        return torch.where(finite, gradient, 0.0)


def _gradient(energies: Tensor, coordinates: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(energies.sum(), coordinates, retain_graph=True)
    return gradient
