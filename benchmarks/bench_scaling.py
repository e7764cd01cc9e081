"""How the evaluator's time and memory grow with atoms and samples: copies of a chain, side by side."""

from __future__ import annotations

import statistics
import time
from typing import Any

# cctbx before numba, which would load other libraries first.
from benchmarks.bench_restraints import exported

# isort: split
import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure
from bxmesh.restraints import Evaluator, Restraints
from bxmesh.restraints.layout import FIELDS

MODEL = "iotbx/regression/secondary_structure/5a63_chainCp.pdb"
COPIES = (1, 5, 20, 120)
SAMPLES = (1, 4, 16, 64)
JITTER = 0.5
APART = 120.0
CALLS = 5
# What all copies have in common: the operators, and the types of atoms.
_IN_COMMON = {"S", "T"}

Floats = NDArray[np.float64]


def run() -> list[Figure]:
    restraints, sites = exported(MODEL)
    figures: list[Figure] = []
    first = 0.0
    for copies in COPIES:
        evaluator = Evaluator(tiled(restraints, copies), isolated=True)
        places = side_by_side(sites, copies)
        seconds = [_seconds(evaluator, places, samples) for samples in SAMPLES]
        each = seconds[-1] / len(places)
        first = first or each
        figures.append(
            Figure(
                f"restraints of {len(places):,} atoms, steps of {JITTER} Å: time per atom and sample at "
                f"B={SAMPLES[-1]}, against {len(sites)} atoms",
                each / first,
                details=f"{' / '.join(f'{1000 * each:.3g}' for each in seconds)} ms a sample at "
                f"B={', '.join(map(str, SAMPLES))}; lists of {evaluator.nbytes / 1e6:.0f} MB",
            )
        )
    return figures


def _seconds(evaluator: Evaluator, places: Floats, samples: int) -> float:
    """The median time of one of so many samples."""
    random = np.random.default_rng(0)
    taken = []
    for _ in range(CALLS):
        batch = places + random.normal(scale=JITTER, size=(samples, *places.shape))
        began = time.perf_counter()
        result = evaluator(batch)
        taken.append(time.perf_counter() - began)
        assert np.isfinite(result.energies).all()
    return statistics.median(taken) / samples


def tiled(restraints: Restraints, copies: int) -> Restraints:
    """Returns the restraints of so many copies of a model."""
    tensors = {}
    for name, field in FIELDS.items():
        tensor, length = restraints[name], field.shape[0]
        if isinstance(length, int) or length in _IN_COMMON:
            tensors[name] = tensor
        elif "+" in length:
            tensors[name] = _offsets(tensor, copies)
        elif name.endswith("_atoms"):
            shifts = np.arange(copies, dtype=tensor.dtype) * restraints.n_atoms
            tensors[name] = np.concatenate([tensor + shift for shift in shifts])
        else:
            tensors[name] = np.concatenate([tensor] * copies)
    return Restraints(tensors)


def _offsets(offsets: NDArray[Any], copies: int) -> NDArray[Any]:
    ends = [offsets[1:] + number * offsets[-1] for number in range(copies)]
    return np.concatenate([offsets[:1], *ends]).astype(offsets.dtype)


def side_by_side(sites: Floats, copies: int) -> Floats:
    """Returns the coordinates of copies that do not touch."""
    edge = int(np.ceil(copies ** (1 / 3)))
    grid = np.stack(np.unravel_index(np.arange(copies), (edge,) * 3), axis=1) * APART
    placed: Floats = (sites - sites.mean(axis=0) + grid[:, np.newaxis]).reshape(-1, 3)
    return placed
