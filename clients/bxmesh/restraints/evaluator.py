"""Energies and gradients of restraints at batches of coordinates."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.kernels.neighbours import (
    CROWDED,
    ImagePairs,
    Pairs,
    farthest_close,
    has_moved,
    image_pairs,
    near_pairs,
)
from bxmesh.restraints.kernels.sample import System, sample_energies
from bxmesh.restraints.layout import TERMS
from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.system import system

__all__ = ["Evaluation", "Evaluator", "Status"]

BUFFER = 0.5
"""How much farther than contacts reach pairs are listed, in Å."""
_FARTHEST = 1.0e4
_ROOM = 1024

Floats = NDArray[np.float64]


class Status(Enum):
    """What became of one sample."""

    OK = "ok"
    """Computed."""
    NON_FINITE = "non_finite"
    """Coordinates of restrained atoms, or the energy, are NaN or infinite."""
    OUT_OF_RANGE = "out_of_range"
    """A restrained atom is more than 10 000 Å from the origin on an axis."""
    EXPLODED = "exploded"
    """Atoms up to three bonds apart are farther from each other than `max_bond_distance`."""
    CROWDED = "crowded"
    """Millions of pairs of atoms are in contact."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The restraints at a batch of coordinates."""

    energies: Floats
    """[B], the sum of all terms; NaN where the status is not OK."""
    terms: Mapping[str, Floats] = field(repr=False)
    """[B] for each of TERMS; NaN where the status is not OK."""
    gradients: NDArray[Any] = field(repr=False)
    """[B, N, 3], energy per Å in the type of the coordinates; zero for atoms without restraints and
    where the status is not OK."""
    statuses: tuple[Status, ...]
    """What became of each sample."""
    term_gradients: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    """[B, N, 3] for each of TERMS when they were asked for; they add up to `gradients`."""


class Evaluator:
    """Evaluates restraints on the processor, sample by sample in parallel.

    Energies and gradients are those of cctbx's `energies_sites`, computed in float64. Results do not
    depend on what was evaluated before, nor on the number of threads. Calls wait for each other.

    `isolated` leaves out images of the model by symmetry. `buffer` in Å: pairs are searched anew when
    an atom of a sample has moved by more than half of it since they last were. `threads` is the
    processors at hand when None.
    """

    def __init__(
        self,
        restraints: Restraints,
        *,
        isolated: bool = False,
        buffer: float = BUFFER,
        threads: int | None = None,
    ) -> None:
        if not 0 <= buffer <= 10:
            raise ValueError(f"The buffer is {buffer} Å; it must be between 0 and 10 Å.")
        self._n_atoms = restraints.n_atoms
        self._system = system(restraints, buffer, isolated=isolated)
        self._isolated = isolated
        self._most_moved = buffer / 2
        self._longest = float(restraints["max_bond_distance"][0])
        self._neighbours: list[_Neighbours] = []
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, coordinates: NDArray[Any], *, per_term: bool = False) -> Evaluation:
        """Returns the restraints at `coordinates` [B, N, 3] or [N, 3], float32 or float64 in Å.

        All N atoms of the model's file in its order. Sample b is compared with the one that was at
        its place before to find out what has moved. Raises RestraintsError for another type or shape.
        """
        samples = self._checked(coordinates)
        with self._lock:
            while len(self._neighbours) < len(samples):
                self._neighbours.append(_Neighbours(self._system, isolated=self._isolated))
            results = self._map(samples, per_term)
        return _gathered(results, coordinates.dtype, per_term)

    def _checked(self, coordinates: NDArray[Any]) -> Floats:
        if coordinates.dtype not in (np.float32, np.float64):
            raise RestraintsError(
                "COORDINATES_DTYPE",
                f"Coordinates must be float32 or float64, not {coordinates.dtype}.",
            )
        samples = coordinates[np.newaxis] if coordinates.ndim == 2 else coordinates
        if samples.ndim != 3 or samples.shape[1:] != (self._n_atoms, 3) or not len(samples):
            raise RestraintsError(
                "COORDINATES_SHAPE",
                f"Coordinates have the shape {list(coordinates.shape)}; these restraints need "
                f"[B, {self._n_atoms}, 3], with every atom of the model's file in its order.",
            )
        return np.ascontiguousarray(samples, dtype=np.float64)

    def _map(self, samples: Floats, per_term: bool) -> list[_Result]:
        jobs = list(zip(samples, self._neighbours, strict=False))
        if len(jobs) == 1 or self._threads == 1:
            return [self._evaluate(*job, per_term) for job in jobs]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "bxmesh-restraints")
        return list(self._pool.map(lambda job: self._evaluate(*job, per_term), jobs))

    def _evaluate(self, sites: Floats, neighbours: _Neighbours, per_term: bool) -> _Result:
        energies = np.full(len(TERMS), np.nan)
        gradients = np.zeros((len(TERMS) if per_term else 1, self._n_atoms, 3))
        status = self._status(sites)
        if status is Status.OK and not neighbours.update(sites, self._most_moved):
            status = Status.CROWDED
        if status is Status.OK:
            sample_energies(
                sites, self._system, neighbours.pairs, neighbours.images, energies, gradients
            )
            if not np.isfinite(energies.sum() + gradients.sum()):
                status = Status.NON_FINITE
                energies[:], gradients[:] = np.nan, 0
        return _Result(status, energies, gradients)

    def _status(self, sites: Floats) -> Status:
        restrained = sites[self._system.contacts.atoms]
        farthest = np.abs(restrained).max(initial=0.0)
        if not farthest <= _FARTHEST:
            finite = np.isfinite(restrained).all()
            return Status.OUT_OF_RANGE if finite else Status.NON_FINITE
        longest = farthest_close(
            sites, self._system.contacts, self._system.lattice, self._isolated
        )
        return Status.EXPLODED if longest > self._longest else Status.OK


@dataclass(frozen=True, eq=False)
class _Result:
    status: Status
    energies: Floats
    """[7]"""
    gradients: Floats
    """[7 or 1, N, 3]"""


def _gathered(results: list[_Result], dtype: np.dtype[Any], per_term: bool) -> Evaluation:
    energies = np.array([each.energies for each in results])
    gradients = np.array([each.gradients.sum(axis=0) for each in results])
    apart = np.array([each.gradients for each in results]) if per_term else None
    return Evaluation(
        energies=energies.sum(axis=1),
        terms={name: energies[:, number] for number, name in enumerate(TERMS)},
        gradients=gradients.astype(dtype, copy=False),
        statuses=tuple(each.status for each in results),
        term_gradients={}
        if apart is None
        else {
            name: apart[:, number].astype(dtype, copy=False) for number, name in enumerate(TERMS)
        },
    )


class _Neighbours:
    """The pairs that may touch in one sample, good until an atom has moved far enough."""

    pairs: Pairs
    images: ImagePairs

    def __init__(self, of: System, *, isolated: bool) -> None:
        self._system = of
        self._isolated = isolated
        self._reference: Floats | None = None
        self._make_room(_ROOM)
        self._make_room_for_images(_ROOM)

    def update(self, sites: Floats, most_moved: float) -> bool:
        """Searches pairs anew where atoms moved by more than that; False when there are too many."""
        contacts = self._system.contacts
        if self._reference is not None and not has_moved(
            sites, self._reference, contacts.atoms, most_moved
        ):
            return True
        self._reference = None
        while (count := near_pairs(sites, contacts, self.pairs)) > len(self.pairs.atom):
            self._make_room(count)
        images = 0
        while not self._isolated and count != CROWDED:
            images = image_pairs(sites, contacts, self._system.lattice, self.images)
            if images <= len(self.images.atom):
                break
            self._make_room_for_images(images)
        if CROWDED in (count, images):
            return False
        self._reference = sites.copy()
        return True

    def _make_room(self, count: int) -> None:
        room = count + count // 4
        rows = len(self._system.contacts.atoms) + 1
        self.pairs = Pairs(np.zeros(rows, np.int64), np.empty(room, np.int32), np.empty(room))

    def _make_room_for_images(self, count: int) -> None:
        room = count + count // 4
        rows = len(self._system.contacts.atoms) + 1
        self.images = ImagePairs(
            np.zeros(rows, np.int64),
            np.empty(room, np.int32),
            np.empty(room),
            np.empty(room, np.int32),
            np.empty((room, 3), np.int32),
        )
