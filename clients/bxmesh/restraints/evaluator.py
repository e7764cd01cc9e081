"""Energies and gradients of restraints at batches of coordinates."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bxmesh.restraints.errors import RestraintsError
from bxmesh.restraints.kernels.neighbours import (
    CROWDED,
    ImagePairs,
    Pairs,
    farthest_close,
    farthest_coordinate,
    has_moved,
    image_pairs,
    near_pairs,
)
from bxmesh.restraints.kernels.sample import System, sample_energies
from bxmesh.restraints.layout import TERMS
from bxmesh.restraints.restraints import Restraints
from bxmesh.restraints.status import Status
from bxmesh.restraints.system import system

__all__ = ["Evaluation", "Evaluator"]

BUFFER = 0.5
"""How much farther than contacts reach pairs are listed, in Å."""
_FARTHEST = 1.0e4
_ROOM = 1024
# Lists of pairs are kept of so many atoms together, or of one sample a thread.
_MOST_LISTED_ATOMS = 250_000

Floats = NDArray[np.float64]


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
    pairs: NDArray[np.int64] = field(repr=False)
    """[B], how many pairs of atoms were listed as near; depends on what was evaluated before."""
    term_gradients: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    """[B, N, 3] for each of TERMS when they were asked for; they add up to `gradients`."""


class Evaluator:
    """Evaluates restraints on the processor, sample by sample in parallel.

    Energies and gradients are those of cctbx's `energies_sites`, computed in float64. They do not
    depend on what was evaluated before, nor on the number of threads. Calls wait for each other.
    Besides its answer it needs 200 to 600 bytes for each atom of `places` samples.

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
        self.places = max(self._threads, _MOST_LISTED_ATOMS // self._n_atoms)
        """Of how many samples of a batch it is remembered which atoms are near each other."""
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, coordinates: NDArray[Any], *, per_term: bool = False) -> Evaluation:
        """Returns the restraints at `coordinates` [B, N, 3] or [N, 3], float32 or float64 in Å.

        All N atoms of the model's file in its order. Sample b is compared with the one that was at
        its place, b modulo `places`, before to find out what has moved. Raises RestraintsError for
        another type or shape.
        """
        samples = self._checked(coordinates)
        batch = _Batch(samples.shape, per_term)
        with self._lock:
            while len(self._neighbours) < min(len(samples), self.places):
                self._neighbours.append(_Neighbours(self._system, isolated=self._isolated))
            for first in range(0, len(samples), self.places):
                numbers = range(first, min(first + self.places, len(samples)))
                batch.statuses.extend(self._map(samples, batch, numbers))
        return batch.evaluation(coordinates.dtype)

    @property
    def nbytes(self) -> int:
        """The memory of the lists of pairs, in bytes."""
        return sum(each.nbytes for each in self._neighbours)

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
        # The kernels are compiled for this kind of array alone.
        return np.require(samples, np.float64, ["C", "A", "W"])

    def _map(self, samples: Floats, batch: _Batch, numbers: range) -> Iterable[Status]:
        def one(number: int) -> Status:
            neighbours = self._neighbours[number - numbers.start]
            status = self._evaluate(
                samples[number], neighbours, batch.energies[number], batch.gradients[number]
            )
            batch.pairs[number] = neighbours.count
            return status

        if len(numbers) == 1 or self._threads == 1:
            return map(one, numbers)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "bxmesh-restraints")
        # One piece for each thread: handing over single samples costs a tenth of their time.
        every = self._threads
        statuses: list[Status] = [Status.OK] * len(numbers)

        def some(first: int) -> None:
            statuses[first::every] = map(one, numbers[first::every])

        list(self._pool.map(some, range(every)))
        return statuses

    def _evaluate(
        self, sites: Floats, neighbours: _Neighbours, energies: Floats, gradients: Floats
    ) -> Status:
        status = self._status(sites)
        if status is Status.OK and not neighbours.update(sites, self._most_moved):
            status = Status.CROWDED
        if status is Status.OK:
            sample_energies(
                sites, self._system, neighbours.pairs, neighbours.images, energies, gradients
            )
            with np.errstate(invalid="ignore"):
                is_finite = math.isfinite(energies.sum() + gradients.sum())
            if not is_finite:
                status = Status.NON_FINITE
                energies[:], gradients[:] = np.nan, 0
        return status

    def _status(self, sites: Floats) -> Status:
        contacts = self._system.contacts
        farthest = farthest_coordinate(sites, contacts.atoms)
        if not math.isfinite(farthest):
            return Status.NON_FINITE
        if farthest > _FARTHEST:
            return Status.OUT_OF_RANGE
        longest = farthest_close(sites, contacts, self._system.lattice, self._isolated)
        return Status.EXPLODED if longest > self._longest else Status.OK


class _Batch:
    """The answer while it is computed."""

    def __init__(self, shape: tuple[int, ...], per_term: bool) -> None:
        samples, atoms, _ = shape
        self.statuses: list[Status] = []
        self.pairs = np.zeros(samples, np.int64)
        self.energies = np.full((samples, len(TERMS)), np.nan)
        self.gradients = np.zeros((samples, len(TERMS) if per_term else 1, atoms, 3))

    def evaluation(self, dtype: np.dtype[Any]) -> Evaluation:
        gradients = self.gradients.astype(dtype, copy=False)
        apart = gradients.shape[1] > 1
        return Evaluation(
            energies=self.energies.sum(axis=1),
            terms={name: self.energies[:, number] for number, name in enumerate(TERMS)},
            gradients=self.gradients.sum(axis=1).astype(dtype) if apart else gradients[:, 0],
            statuses=tuple(self.statuses),
            pairs=self.pairs,
            term_gradients={name: gradients[:, number] for number, name in enumerate(TERMS)}
            if apart
            else {},
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

    @property
    def count(self) -> int:
        """How many pairs are listed, images included; 0 where the sample had too many."""
        return 0 if self._reference is None else int(self.pairs.start[-1] + self.images.start[-1])

    @property
    def nbytes(self) -> int:
        """The memory of the lists, in bytes."""
        return sum(array.nbytes for array in (*self.pairs, *self.images))

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
