"""The evaluator of exported restraints against cctbx in process: large steps, and small ones."""

from __future__ import annotations

import asyncio
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

# cctbx before numba, which would load other libraries first.
from benchmarks.bare import BareGeometry, prepare_library, wheel_file

# isort: split
import numpy as np

from benchmarks.figures import Figure, milliseconds, p50_in_turn
from bxmesh.restraints import Evaluator, Restraints
from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary
from bxmesh.server.geometry.engine.export import export
from bxmesh.server.geometry.engine.model import build

MODEL = "mmtbx/regression/pdbs/AF_json_v3.pdb"
CALLS = 40
PLACES = 24


def run() -> list[Figure]:
    prepare_library()
    bare = BareGeometry(MODEL)
    evaluator = Evaluator(_restraints())
    evaluator(bare.sites)
    return [
        _compared(evaluator, bare, what, jitter, samples, goal)
        for what, jitter, samples, goal in (
            ("steps of 0.5 Å", 0.5, 1, 15),
            ("steps of 0.5 Å", 0.5, 16, 25),
            ("steps of 0.02 Å", 0.02, 1, 1),
            ("steps of 0.02 Å", 0.02, 16, 2),
        )
    ]


def _restraints() -> Restraints:
    with tempfile.TemporaryDirectory() as folder:
        library = RestraintLibrary(Path(folder))
        return Restraints(export(build(ModelInputs(wheel_file(MODEL).read_bytes()), library)))


def _compared(
    evaluator: Evaluator, bare: BareGeometry, what: str, jitter: float, samples: int, goal: float
) -> Figure:
    random = np.random.default_rng(0)
    shape = (samples, *bare.sites.shape)
    places: list[Any] = [
        bare.sites + random.normal(scale=jitter, size=shape) for _ in range(PLACES)
    ]
    ours, theirs = count(), count()

    async def evaluate() -> None:
        evaluator(places[next(ours) % PLACES])

    def in_process() -> None:
        # One sample stands for the batch: cctbx has no batches.
        bare.energy_and_gradients(places[next(theirs) % PLACES][0])

    mine, plain = asyncio.run(p50_in_turn(evaluate, in_process, CALLS))
    return Figure(
        f"restraints of {len(bare.sites)} atoms, {what}, B={samples}: faster than cctbx",
        samples * plain / mine,
        at_least=goal,
        details=f"{milliseconds(mine / samples, plain)} a sample, ours / cctbx",
    )
