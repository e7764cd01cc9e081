"""Where atoms are: which may touch, and which samples are fit to be computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.status import Status
from bxmesh.restraints.torch.cells import Pairs
from bxmesh.restraints.torch.contacts import Contacts, contacts_of, to_image
from bxmesh.restraints.torch.functions import dot, placed
from bxmesh.restraints.torch.images import ImagePairs, Lattice, lattice_of
from bxmesh.restraints.torch.operators import pairs_to_images, pairs_within
from bxmesh.restraints.torch.symmetry import frames, to_images
from bxmesh.restraints.torch.terms import keep

__all__ = ["CODES", "Found", "Neighbours", "Plausibility"]

CODES = {status: number for number, status in enumerate(Status)}
"""The numbers by which statuses are told in tensors."""
_FARTHEST = 1.0e4


class Found(NamedTuple):
    """All pairs of a batch."""

    within: Pairs
    to_images: ImagePairs | None
    """None for a model that is isolated."""

    @property
    def crowded(self) -> Tensor:
        """[B], which samples have too many pairs to be listed."""
        crowded = self.within.crowded
        return crowded if self.to_images is None else crowded | self.to_images.crowded

    def counts(self, atoms: int) -> Tensor:
        """[B], how many pairs each sample of that many atoms has."""
        first = self.within.first
        if self.to_images is not None:
            first = torch.cat([first, self.to_images.first])
        return torch.bincount(first // atoms, minlength=len(self.crowded))


class Neighbours(nn.Module):
    """The search for pairs that may touch.

    Pairs of a batch that are up to `buffer` Å apart besides are listed, too, and kept until one of its atoms
    has moved by more than half of that.
    """

    def __init__(self, restraints: Restraints, *, isolated: bool, buffer: float) -> None:
        super().__init__()
        self._isolated = isolated
        self._most_moved = buffer / 2
        self._kept: dict[int, tuple[Tensor, Found]] = {}
        contacts = contacts_of(restraints, buffer)
        lattice = lattice_of(restraints, float(contacts.listed_square.max()) ** 0.5)
        for name, table in {**contacts._asdict(), **lattice._asdict()}.items():
            self.register_buffer(name, table, persistent=False)

    @torch.no_grad()
    def forward(self, sites: Tensor, good: Tensor, number: int) -> Found:
        """Returns the pairs in the good [B] of samples of sites [3, B, N], batch `number` of a call."""
        # What a compiled module does cannot depend on what went before.
        if torch.compiler.is_compiling():
            return self._search(sites, good)
        # What is kept may be wanted for a gradient later.
        with torch.inference_mode(False), torch.no_grad():
            reference = torch.where(good[:, None], sites, torch.nan)
            kept = self._kept.get(number)
            if kept is None or self._have_moved(reference, kept[0], good):
                self._kept[number] = kept = reference, self._search(sites, good)
            return kept[1]

    def _have_moved(self, sites: Tensor, reference: Tensor, good: Tensor) -> bool:
        if (sites.shape, sites.dtype, sites.device) != (
            reference.shape,
            reference.dtype,
            reference.device,
        ):
            return True
        step = sites - reference
        near = dot(step, step) <= self._most_moved**2
        return not bool((near | ~good[:, None]).all())

    def _search(self, sites: Tensor, good: Tensor) -> Found:
        contacts = Contacts(*(self.get_buffer(name) for name in Contacts._fields))
        within = pairs_within(sites, good, contacts)
        if self._isolated:
            return Found(within, None)
        lattice = Lattice(*(self.get_buffer(name) for name in Lattice._fields))
        return Found(within, pairs_to_images(sites, good & ~within.crowded, contacts, lattice))


class Plausibility(nn.Module):
    """Tells which samples cannot be computed, before anything is."""

    close: Tensor
    image: Tensor
    rotation: Tensor
    offset: Tensor

    def __init__(self, restraints: Restraints, *, isolated: bool) -> None:
        super().__init__()
        self._longest = float(restraints["max_bond_distance"][0])
        atoms, operator = restraints["close_atoms"].astype(np.int64), restraints["close_operator"]
        image = to_image(restraints)
        within = ~image & (atoms[:, 0] < atoms[:, 1])
        if isolated:
            image = np.zeros_like(image)
        rotation, offset = frames(restraints, operator[image], restraints["close_shift"][image])
        keep(self, close=atoms[within].T, image=atoms[image].T, rotation=rotation, offset=offset)

    @torch.no_grad()
    def forward(self, sites: Tensor) -> Tensor:
        """Sites [3, B, N] to CODES [B]."""
        farthest = sites.abs().amax((0, 2))
        codes = torch.where(self._are_torn(sites), CODES[Status.EXPLODED], CODES[Status.OK])
        codes = torch.where(farthest > _FARTHEST, CODES[Status.OUT_OF_RANGE], codes)
        return torch.where(farthest.isfinite(), codes, CODES[Status.NON_FINITE])

    def _are_torn(self, sites: Tensor) -> Tensor:
        a, b = placed(sites, self.close).unbind(2)
        vectors = [b - a]
        if self.image.numel():
            a, b = placed(sites, self.image).unbind(2)
            held = torch.zeros_like(self.image[0], dtype=torch.bool)
            vectors.append(to_images(a, b, self.rotation, self.offset, held))
        torn = [(dot(each, each) > self._longest**2).any(-1) for each in vectors]
        return torch.stack(torn).any(0)
