"""Batches over two workers against two bare processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.bare import UBF, BareGeometry, gradients_per_second, jittered, wheel_file
from benchmarks.figures import Figure
from bxmesh.client import AsyncMesh, Model
from bxmesh.server.embedded import EmbeddedMesh

SECONDS = 1.5
ROUNDS = 5
CONFORMERS = 32
IN_FLIGHT = 3
# Å, of a conformer that hardly moves, and of one that a generative model moves.
STILL, MOVING = 0.02, 0.5

Rates = list[tuple[float, float]]


def _bare(connection: Connection) -> None:
    """Measures whenever it is told to."""
    from benchmarks.bare import prepare_library

    prepare_library()
    bare = BareGeometry(UBF)
    connection.send(None)
    while sigma := connection.recv():
        connection.send(gradients_per_second(bare, SECONDS, sigma))


class TwoBareProcesses:
    """cctbx in two processes, without anything else."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections = []
        self._processes = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            self._processes.append(context.Process(target=_bare, args=(theirs,)))
        for process in self._processes:
            process.start()
        for connection in self._connections:
            connection.recv()

    def rate(self, sigma: float = STILL) -> float:
        """Gradients a second of both together, with so much jitter in Å."""
        for connection in self._connections:
            connection.send(sigma)
        rates: list[float] = [connection.recv() for connection in self._connections]
        return sum(rates)

    def close(self) -> None:
        """Ends the processes."""
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join()


def run() -> list[Figure]:
    processes = TwoBareProcesses()
    try:
        rates = asyncio.run(_mesh(processes))
    finally:
        processes.close()
    still, singles, moving = rates
    return [
        _figure(
            f"batches of {CONFORMERS}, 2264 atoms, {STILL} Å, against two bare processes",
            still,
            0.85,
        ),
        _figure("the same in float32", singles),
        _figure(f"the same, {MOVING} Å", moving),
    ]


def _figure(what: str, rates: Rates, goal: float | None = None) -> Figure:
    mesh, bare = (statistics.median(each) for each in zip(*rates, strict=True))
    return Figure(
        what, mesh / bare, at_least=goal, details=f"{mesh:,.0f} / {bare:,.0f} gradients a second"
    )


async def _mesh(processes: TwoBareProcesses) -> list[Rates]:
    """Rates of the mesh and of the bare processes in turn: still, in float32, and moving."""
    with EmbeddedMesh(workers=2) as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model = await mesh.create_model(wheel_file(UBF), include_atoms=True)
            assert model.atoms is not None
            sites = model.atoms.sites
            found = []
            for sigma, dtype in ((STILL, "f8"), (STILL, "f4"), (MOVING, "f8")):
                batch = jittered(sites, sigma, CONFORMERS).astype(dtype)
                found.append(
                    [
                        (await _rate(mesh, model, batch), processes.rate(sigma))
                        for _ in range(ROUNDS)
                    ]
                )
            return found


async def _rate(mesh: AsyncMesh, model: Model, batch: np.ndarray) -> float:
    done = 0
    deadline = 0.0

    async def load() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            result = await mesh.gradients(model, batch, target="geometry")
            assert result.ok
            done += CONFORMERS

    await asyncio.gather(*[mesh.gradients(model, batch, target="geometry") for _ in range(6)])
    began = time.perf_counter()
    deadline = began + SECONDS
    await asyncio.gather(*[load() for _ in range(IN_FLIGHT)])
    return done / (time.perf_counter() - began)
