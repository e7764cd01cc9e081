"""A session's step against the same calculation in process."""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import Any

from benchmarks.bare import (
    MTZ_7N2L,
    PDB_7N2L,
    UBF,
    BareGeometry,
    BareXray,
    jittered,
    prepare_library,
    wheel_file,
)
from benchmarks.figures import Figure, milliseconds, p50, p50_async
from bxmesh.client import AsyncMesh, Mesh
from bxmesh.server.embedded import EmbeddedMesh

STEPS = 400


def run() -> list[Figure]:
    prepare_library()
    with EmbeddedMesh(workers=1) as server:
        return [
            *asyncio.run(_geometry(server)),
            _synchronous(server),
            asyncio.run(_xray(server)),
        ]


async def _geometry(server: EmbeddedMesh) -> list[Figure]:
    bare = BareGeometry(UBF)
    conformers = cycle(jittered(bare.sites, 0.02, 64))
    in_process = p50(lambda: bare.gradients(next(conformers)), STEPS)
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        model = await mesh.create_model(wheel_file(UBF))
        async with mesh.session(model, target="geometry") as session:
            await session.step(bare.sites)
            step = await p50_async(lambda: session.step(next(conformers)), STEPS)
        singles = (conformer.astype("f4") for conformer in conformers)
        async with mesh.session(model, target="geometry") as session:
            await session.step(bare.sites)
            single = await p50_async(lambda: session.step(next(singles)), STEPS)
    again = p50(lambda: bare.gradients(next(conformers)), STEPS)
    base = (in_process + again) / 2
    return [
        Figure(
            "session step, 2264 atoms, 0.02 Å, against energies_sites in process",
            step / base,
            at_most=1.6,
            details=milliseconds(step, base),
        ),
        Figure("the same in float32", single / base, details=milliseconds(single, base)),
    ]


def _synchronous(server: EmbeddedMesh) -> Figure:
    bare = BareGeometry(UBF)
    conformers = cycle(jittered(bare.sites, 0.02, 64))
    base = p50(lambda: bare.gradients(next(conformers)), STEPS)
    with Mesh(server.address, state_dir=server.state_dir) as mesh:
        model = mesh.create_model(wheel_file(UBF))
        with mesh.session(model, target="geometry") as session:
            session.step(bare.sites)
            step = p50(lambda: session.step(next(conformers)), STEPS)
    return Figure(
        "the same with the synchronous client", step / base, details=milliseconds(step, base)
    )


async def _xray(server: EmbeddedMesh) -> Figure:
    bare = BareXray()
    conformers: Any = cycle(jittered(bare.sites, 0.02, 64))
    in_process = p50(lambda: bare.gradients(next(conformers)), STEPS // 4)
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        model = await mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L))
        async with mesh.session(model, target="xray") as session:
            await session.step(bare.sites)
            step = await p50_async(lambda: session.step(next(conformers)), STEPS // 4)
    again = p50(lambda: bare.gradients(next(conformers)), STEPS // 4)
    base = (in_process + again) / 2
    return Figure(
        "session step, X-ray ml of 7n2l, against f_model in process",
        step / base,
        at_most=1.3,
        details=milliseconds(step, base),
    )
