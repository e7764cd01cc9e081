"""Targets of the PyTorch package against plain session steps and against two bare processes."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import cycle

# cctbx before torch, which would crash the process the other way round.
from benchmarks.bare import MTZ_7N2L, PDB_7N2L, UBF, jittered, wheel_file

# isort: split
import torch

from benchmarks.bench_batch import TwoBareProcesses
from benchmarks.figures import Figure, milliseconds, p50_in_turn
from bxmesh.client import Mesh, Model
from bxmesh.client.torch import GeometryEnergy, Target, XrayTarget
from bxmesh.server.embedded import EmbeddedMesh

STEPS = 400
BATCH = 16
ROUNDS = 5
SECONDS = 1.5


def run() -> list[Figure]:
    bare = TwoBareProcesses()
    try:
        with (
            EmbeddedMesh(workers=2) as server,
            Mesh(server.address, state_dir=server.state_dir) as mesh,
        ):
            large = mesh.create_model(wheel_file(UBF), include_atoms=True)
            small = mesh.create_model(
                wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), include_atoms=True
            )
            return [
                _single("2264 atoms", mesh, large, GeometryEnergy, STEPS),
                _single("X-ray ml of 7n2l", mesh, small, XrayTarget, STEPS // 4),
                _batch(mesh, large, bare),
            ]
    finally:
        bare.close()


def _single(what: str, mesh: Mesh, model: Model, kind: type[Target], steps: int) -> Figure:
    assert model.atoms is not None
    conformers = cycle(jittered(model.atoms.sites, 0.02, 64))
    with mesh.session(model, target=kind.name) as session, kind(mesh, model) as target:

        async def module() -> None:
            _forward_and_backward(target, torch.from_numpy(next(conformers)))

        for _ in range(5):
            session.step(next(conformers))
            target(torch.from_numpy(next(conformers)))
        ours, plain = asyncio.run(
            p50_in_turn(module, lambda: session.step(next(conformers)), steps)
        )
    return Figure(
        f"torch, forward and backward, {what}, against a session step",
        ours / plain,
        at_most=1.2,
        details=milliseconds(ours, plain),
    )


def _batch(mesh: Mesh, model: Model, bare: TwoBareProcesses) -> Figure:
    assert model.atoms is not None
    batch = torch.from_numpy(jittered(model.atoms.sites, 0.02, BATCH))
    with GeometryEnergy(mesh, model, sessions=2) as target:
        workers = {session.worker_id for session in target.open()}
        _forward_and_backward(target, batch)
        rates = [(_rate(target, batch), bare.rate()) for _ in range(ROUNDS)]
    ours, limit = (statistics.median(each) for each in zip(*rates, strict=True))
    return Figure(
        f"torch, batches of {BATCH}, 2264 atoms, against two bare processes",
        ours / limit,
        details=f"{ours:,.0f} / {limit:,.0f} gradients a second, {len(workers)} workers",
    )


def _rate(target: Target, batch: torch.Tensor) -> float:
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        _forward_and_backward(target, batch)
        done += len(batch)
    return done / (time.perf_counter() - began)


def _forward_and_backward(target: Target, coordinates: torch.Tensor) -> None:
    target(coordinates.requires_grad_(True)).sum().backward()
    coordinates.grad = None
