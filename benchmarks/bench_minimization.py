"""Minimization against the same one in process, and how busy a batch of jobs keeps the workers."""

from __future__ import annotations

# cctbx before SciPy, which would crash the process the other way round.
from benchmarks.bare import UBF, BareGeometry, prepare_library, wheel_file

# isort: split
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from benchmarks.figures import Figure
from benchmarks.processor import processor_seconds
from bxmesh.client import Mesh
from bxmesh.client.batches import read_manifest
from bxmesh.server.embedded import EmbeddedMesh
from bxmesh.server.geometry.engine.writing import with_sites
from tests.processes import children

EVALUATIONS = 100
ROUNDS = 3
MODELS = 60
WORKERS = 2


def run() -> list[Figure]:
    prepare_library()
    with (
        EmbeddedMesh(workers=WORKERS) as server,
        Mesh(server.address, state_dir=server.state_dir) as mesh,
    ):
        return [_wall(mesh), _busy(mesh, server)]


def _shaken(seed: int, sites: Any) -> Any:
    return sites + np.random.default_rng(seed).normal(scale=0.15, size=sites.shape)


def _wall(mesh: Mesh) -> Figure:
    model = mesh.create_model(wheel_file(UBF), include_atoms=True)
    assert model.atoms is not None
    bare = BareGeometry(UBF)
    ours, theirs = [], []
    for seed in range(ROUNDS):
        start = _shaken(seed, bare.sites)
        began = time.perf_counter()
        # The same start, for the two have the atoms in the same order.
        mesh.minimize(model, start, target="geometry", max_evaluations=EVALUATIONS)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        _in_process(bare, start)
        theirs.append(time.perf_counter() - began)
    return Figure(
        f"minimization of 2264 atoms, {EVALUATIONS} evaluations, against the same in process",
        sum(ours) / sum(theirs),
        at_most=1.3,
        details=f"{sum(ours) / ROUNDS:.2f} s against {sum(theirs) / ROUNDS:.2f} s",
    )


def _in_process(bare: BareGeometry, start: Any) -> None:
    def value(flat: Any) -> tuple[float, Any]:
        energy, gradient = bare.energy_and_gradients(flat.reshape(-1, 3))
        return energy, gradient.ravel()

    minimize(
        value,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxcor": 10,
            "maxfun": EVALUATIONS,
            "maxiter": EVALUATIONS,
            "gtol": 0.0,
            "ftol": 0.0,
        },
    )


def _busy(mesh: Mesh, server: EmbeddedMesh) -> Figure:
    """Models that are all different: each is read, its restraints built, and minimized."""
    data = wheel_file(UBF).read_bytes()
    model = mesh.create_model(wheel_file(UBF), include_atoms=True)
    assert model.atoms is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = []
        for seed in range(MODELS):
            path = folder / f"{seed}.pdb"
            path.write_bytes(with_sites(data, _shaken(seed, model.atoms.sites), mmcif=False))
            options = {"maxEvaluations": 50, "options": {"target": "TARGET_GEOMETRY"}}
            lines.append(json.dumps({"model": str(path), "options": options}))
        items = read_manifest(lines, "minimization")
        workers = [pid for pid in children(server.pid) if _is_worker(pid)]
        before = sum(map(processor_seconds, workers))
        began = time.perf_counter()
        ends = list(mesh.batch(items, folder / "results.jsonl"))
        took = time.perf_counter() - began
        used = sum(map(processor_seconds, workers)) - before
    assert all(each.state == "succeeded" for each in ends)
    return Figure(
        f"a batch of {MODELS} models keeps its workers busy",
        used / (took * len(workers)),
        unit="",
        at_least=0.9,
        details=f"{took:.1f} s; {took / MODELS * 1000:.0f} ms a model",
    )


def _is_worker(pid: int) -> bool:
    try:
        return b"geometry.agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
