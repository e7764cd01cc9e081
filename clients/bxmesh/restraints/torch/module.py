"""Restraints as a module of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.layout import TERMS
from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.status import Status
from bxmesh.restraints.torch.bonded import Angles, Bonds, Chiralities, Dihedrals
from bxmesh.restraints.torch.evaluation import Evaluation
from bxmesh.restraints.torch.neighbours import CODES, Found, Neighbours, Plausibility
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

    `isolated` leaves out images of the model by symmetry. `buffer` in Å: pairs are searched anew when an atom
    of a batch has moved by more than half of it since they last were. `chunk` is how many samples are
    computed together, which bounds the memory; None is as many as have 250 000 atoms.

    A sample's last digits may depend on the size of its batch: PyTorch's `atan2` and `pow` round otherwise in
    the lanes of a vector register than in what remains behind the last full one.
    """

    atom_mask: Tensor

    def __init__(
        self,
        restraints: Restraints,
        *,
        isolated: bool = False,
        buffer: float = 0.5,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= buffer <= 10:
            raise ValueError(f"The buffer is {buffer} Å; it must be between 0 and 10 Å.")
        if chunk is not None and chunk < 1:
            raise ValueError(f"The chunk is {chunk} samples; it must be at least 1.")
        self.n_atoms = restraints.n_atoms
        self.chunk = chunk or max(1, _MOST_ATOMS // restraints.n_atoms)
        self._terms = _terms(restraints, isolated=isolated)
        self._repulsion = Repulsion(restraints)
        self._neighbours = Neighbours(restraints, isolated=isolated, buffer=buffer)
        self._plausibility = Plausibility(restraints, isolated=isolated)
        keep(self, atom_mask=restraints["atom_mask"])

    def forward(self, coordinates: Tensor) -> Tensor:
        """Returns the energies [B] at coordinates [B, N, 3] or [N, 3] in Å, float32 or float64.

        All N atoms of the model's file in its order. A sample that cannot be computed has NaN and no
        gradient. Raises RestraintsError for another type or shape.
        """
        chunks = self._checked(coordinates).split(self.chunk)
        energies: Any = self._energies
        if len(chunks) > 1 and torch.is_grad_enabled() and coordinates.requires_grad:
            # Kept for the gradient, all chunks would be in memory together.
            energies = partial(
                checkpoint, self._energies, use_reentrant=False, preserve_rng_state=False
            )
        prepared = (self._prepared(chunk, number) for number, chunk in enumerate(chunks))
        return torch.cat(
            [energies(chunk, *each).sum(0) for chunk, each in zip(chunks, prepared, strict=True)]
        )

    @torch.inference_mode(False)
    def evaluate(self, coordinates: Tensor, *, per_term: bool = False) -> Evaluation:
        """Returns energies, terms, gradients and what became of each sample; nothing has a graph."""
        chunks = self._checked(coordinates.detach()).split(self.chunk)
        parts = [
            self._evaluated(chunk.clone(), number, per_term=per_term)
            for number, chunk in enumerate(chunks)
        ]
        energies, codes, gradients, pairs = zip(*parts, strict=True)
        terms = torch.cat(energies, 1)
        total, *apart = torch.cat(gradients, 1)
        statuses = tuple(Status)
        return Evaluation(
            energies=terms.sum(0),
            terms=dict(zip(TERMS, terms, strict=True)),
            gradients=total,
            statuses=tuple(statuses[code] for code in torch.cat(codes).tolist()),
            pairs=torch.cat(pairs),
            term_gradients=dict(zip(TERMS, apart, strict=True)) if per_term else {},
        )

    def _evaluated(
        self, chunk: Tensor, number: int, *, per_term: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns energies [7, B], CODES [B], gradients [1 or 8, B, N, 3], and how many pairs [B].

        The whole gradient comes first, then those of the terms.
        """
        codes, pairs = self._prepared(chunk, number)
        with torch.enable_grad():
            chunk.requires_grad_()
            energies = self._energies(chunk, codes, pairs)
            wanted = [energies.sum(0), *(energies if per_term else ())]
            gradients = torch.stack([_gradient(each, chunk) for each in wanted])
        energies = energies.detach()
        overflowed = (codes == CODES[Status.OK]) & energies[0].isnan()
        codes = torch.where(overflowed, CODES[Status.NON_FINITE], codes)
        return energies, codes, gradients, pairs.counts(self.n_atoms)

    @torch.no_grad()
    def _prepared(self, chunk: Tensor, number: int) -> tuple[Tensor, Found]:
        """Returns the CODES [B] of coordinates [B, N, 3] and who may touch whom."""
        sites = self._sites(chunk)
        codes = self._plausibility(sites)
        good = codes == CODES[Status.OK]
        pairs = self._neighbours(torch.where(good[:, None], sites, 0.0), good, number)
        return torch.where(good & pairs.crowded, CODES[Status.CROWDED], codes), pairs

    def _energies(self, chunk: Tensor, codes: Tensor, pairs: Found) -> Tensor:
        """Coordinates [B, N, 3] to the energies [7, B] of TERMS."""
        good = codes == CODES[Status.OK]
        clean: Any = _Clean.apply
        # Others are computed as well, with all atoms at the origin, where nothing overflows.
        sites = torch.where(good[:, None], clean(self._sites(chunk)), 0.0)
        energies = dict.fromkeys(TERMS, sites.new_zeros(sites.shape[1]))
        for name, term in self._terms.items():
            name = name.removeprefix("symmetry_")
            energies[name] = energies[name] + term(sites)
        energies["nonbonded"] = self._repulsion(sites, pairs)
        terms = torch.stack(list(energies.values()))
        return torch.where(good & terms.detach().sum(0).isfinite(), terms, torch.nan)

    def _sites(self, chunk: Tensor) -> Tensor:
        """Coordinates [B, N, 3] to sites [3, B, N], zeros for atoms without restraints."""
        return torch.where(self.atom_mask, chunk.permute(2, 0, 1).contiguous(), 0.0)

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
    def forward(sites: Tensor) -> Tensor:
        return sites.view_as(sites)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        finite = gradient.isfinite().all(2, keepdim=True).all(0, keepdim=True)
        return torch.where(finite, gradient, 0.0)


def _gradient(energies: Tensor, coordinates: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(energies.sum(), coordinates, retain_graph=True)
    return gradient
