"""The evaluator of exported restraints against cctbx in process, and beside TorchRef's geometry."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

# cctbx before numba, which would load other libraries first.
from benchmarks.bare import BareGeometry, prepare_library, wheel_file

# isort: split
import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders.torchref_process import TorchRef
from benchmarks.figures import Figure, milliseconds, p50_in_turn
from bxmesh.restraints import Evaluator, Restraints
from bxmesh.server.geometry.engine import ModelInputs, RestraintLibrary
from bxmesh.server.geometry.engine.export import export
from bxmesh.server.geometry.engine.model import build

MODEL = "mmtbx/regression/pdbs/AF_json_v3.pdb"
CALLS = 200
PLACES = 24

Floats = NDArray[np.float64]


def run() -> list[Figure]:
    prepare_library()
    bare = BareGeometry(MODEL)
    evaluator = Evaluator(exported(MODEL)[0])
    evaluator(bare.sites)
    figures = []
    for jitter, samples, goal in ((0.5, 1, 15), (0.5, 16, 25), (0.02, 1, 1), (0.02, 16, 2)):
        mine, theirs = _compared(evaluator, bare, jitter, samples)
        figures.append(
            Figure(
                f"restraints of {len(bare.sites)} atoms, steps of {jitter} Å, B={samples}: faster than "
                "cctbx",
                theirs / mine,
                at_least=goal,
                details=f"{milliseconds(mine, theirs)} a sample, ours / cctbx",
            )
        )
    return figures + _beside_torchref(evaluator, bare.sites)


def exported(path: str) -> tuple[Restraints, Floats]:
    """The restraints of a model of the cctbx wheel, and its coordinates."""
    with tempfile.TemporaryDirectory() as folder:
        library = RestraintLibrary(Path(folder))
        model = build(ModelInputs(wheel_file(path).read_bytes()), library)
        return Restraints(export(model)), model.atoms.sites


def _beside_torchref(evaluator: Evaluator, sites: Floats) -> list[Figure]:
    """No goals: its energy is another one, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.pdb"
        # Of the cell of 1 Å that stands for none it would make billions of images.
        lines = wheel_file(MODEL).read_text().splitlines(keepends=True)
        box = "CRYST1  300.000  300.000  300.000  90.00  90.00  90.00 P 1           1\n"
        model.write_text(box + "".join(line for line in lines if line[:6] != "CRYST1"))
        try:
            torchref = TorchRef(model)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            print(f"without TorchRef: {error}", file=sys.stderr)
            return []
        with torchref:
            return [_with_torchref(torchref, evaluator, sites, jitter) for jitter in (0.5, 0.02)]


def _with_torchref(
    torchref: TorchRef, evaluator: Evaluator, sites: Floats, jitter: float
) -> Figure:
    mine, theirs = _p50(evaluator, sites, jitter, 1, lambda: torchref.step(jitter), CALLS // 10)
    return Figure(
        f"the same, steps of {jitter} Å, beside TorchRef's geometry target, in float32",
        theirs / mine,
        details=f"{milliseconds(mine, theirs)}",
    )


def _compared(
    evaluator: Evaluator, bare: BareGeometry, jitter: float, samples: int
) -> tuple[float, float]:
    """The times of one sample, ours and cctbx's."""
    random, theirs = np.random.default_rng(1), count()
    places = bare.sites + random.normal(scale=jitter, size=(PLACES, *bare.sites.shape))

    def in_process() -> None:
        # One sample stands for the batch: cctbx has no batches.
        bare.energy_and_gradients(places[next(theirs) % PLACES])

    return _p50(evaluator, bare.sites, jitter, samples, in_process)


def _p50(
    evaluator: Evaluator,
    sites: Floats,
    jitter: float,
    samples: int,
    other: Callable[[], None],
    calls: int = CALLS,
) -> tuple[float, float]:
    """The median times of one of our samples, and of the other."""
    random, ours = np.random.default_rng(0), count()
    shape = (samples, *sites.shape)
    places = [sites + random.normal(scale=jitter, size=shape) for _ in range(PLACES)]

    async def evaluate() -> None:
        evaluator(places[next(ours) % PLACES])

    mine, theirs = asyncio.run(p50_in_turn(evaluate, other, calls))
    return mine / samples, theirs
