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


def _bare(connection: Connection) -> None:
    """Measures whenever it is told to."""
    from benchmarks.bare import prepare_library

    prepare_library()
    bare = BareGeometry(UBF)
    connection.send(None)
    while connection.recv():
        connection.send(gradients_per_second(bare, SECONDS))


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

    def rate(self) -> float:
        """Gradients a second of both together."""
        for connection in self._connections:
            connection.send(True)
        rates: list[float] = [connection.recv() for connection in self._connections]
        return sum(rates)

    def close(self) -> None:
        """Ends the processes."""
        for connection in self._connections:
            connection.send(False)
        for process in self._processes:
            process.join()


def run() -> list[Figure]:
    processes = TwoBareProcesses()
    try:
        rates = asyncio.run(_mesh(processes))
    finally:
        processes.close()
    bare, doubles, singles = (statistics.median(each) for each in zip(*rates, strict=True))
    return [
        Figure(
            f"batches of {CONFORMERS}, 2264 atoms, against two bare processes",
            doubles / bare,
            at_least=0.85,
            details=f"{doubles:,.0f} / {bare:,.0f} gradients a second",
        ),
        Figure(
            "the same in float32",
            singles / bare,
            details=f"{singles:,.0f} / {bare:,.0f} gradients a second",
        ),
    ]


async def _mesh(processes: TwoBareProcesses) -> list[tuple[float, float, float]]:
    """Rates of the bare processes, of the mesh, and of the mesh in float32, measured in turn."""
    with EmbeddedMesh(workers=2) as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model = await mesh.create_model(wheel_file(UBF), include_atoms=True)
            assert model.atoms is not None
            batch = jittered(model.atoms.sites, 0.02, CONFORMERS)
            singles = batch.astype("f4")
            return [
                (
                    processes.rate(),
                    await _rate(mesh, model, batch),
                    await _rate(mesh, model, singles),
                )
                for _ in range(ROUNDS)
            ]


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
