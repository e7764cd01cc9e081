"""Batches over two workers against two bare processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.synchronize import Event

import numpy as np

from benchmarks.bare import UBF, BareGeometry, gradients_per_second, jittered, wheel_file
from benchmarks.figures import Figure
from bxmesh.client import AsyncMesh, Model
from bxmesh.server.embedded import EmbeddedMesh

SECONDS = 5.0
CONFORMERS = 32
IN_FLIGHT = 3


def _bare(queue: multiprocessing.Queue[float], start: Event) -> None:
    from benchmarks.bare import prepare_library

    prepare_library()
    BareGeometry(UBF)
    start.wait()
    queue.put(gradients_per_second(UBF, SECONDS))


def two_bare_processes() -> float:
    """Gradients a second of two processes together."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[float] = context.Queue()
    start = context.Event()
    processes = [context.Process(target=_bare, args=(queue, start)) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    rates = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def run() -> list[Figure]:
    before = two_bare_processes()
    doubles, singles = asyncio.run(_mesh())
    bare = (before + two_bare_processes()) / 2
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


async def _mesh() -> tuple[float, float]:
    with EmbeddedMesh(workers=2) as server:
        async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
            model = await mesh.create_model(wheel_file(UBF), include_atoms=True)
            assert model.atoms is not None
            batch = jittered(model.atoms.sites, 0.02, CONFORMERS)
            return await _rate(mesh, model, batch), await _rate(mesh, model, batch.astype("f4"))


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
