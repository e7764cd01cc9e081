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
from benchmarks.figures import Figure, milliseconds, p50_in_turn
from bxmesh.client import AsyncMesh, Mesh
from bxmesh.server.embedded import EmbeddedMesh

STEPS = 400


def run() -> list[Figure]:
    prepare_library()
    with EmbeddedMesh(workers=1) as server:
        return [
            *asyncio.run(_geometry(server)),
            asyncio.run(_synchronous(server)),
            asyncio.run(_xray(server)),
        ]


async def _geometry(server: EmbeddedMesh) -> list[Figure]:
    bare = BareGeometry(UBF)
    conformers = cycle(jittered(bare.sites, 0.02, 64))
    moving = cycle(jittered(bare.sites, 0.5, 64))
    figures = []
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        model = await mesh.create_model(wheel_file(UBF))
        for what, source, dtype, goal in (
            (
                "session step, 2264 atoms, 0.02 Å, against energies_sites in process",
                conformers,
                "f8",
                1.6,
            ),
            ("the same in float32", conformers, "f4", None),
            ("the same, 0.5 Å", moving, "f8", None),
        ):
            async with mesh.session(model, target="geometry") as session:
                await session.step(bare.sites)
                step, base = await p50_in_turn(
                    lambda session=session, source=source, dtype=dtype: session.step(  # type: ignore[misc]
                        next(source).astype(dtype, copy=False)
                    ),
                    lambda source=source: bare.gradients(next(source)),  # type: ignore[misc]
                    STEPS if source is conformers else STEPS // 4,
                )
            figures.append(
                Figure(what, step / base, at_most=goal, details=milliseconds(step, base))
            )
    return figures


async def _synchronous(server: EmbeddedMesh) -> Figure:
    bare = BareGeometry(UBF)
    conformers = cycle(jittered(bare.sites, 0.02, 64))
    with Mesh(server.address, state_dir=server.state_dir) as mesh:
        model = mesh.create_model(wheel_file(UBF))
        with mesh.session(model, target="geometry") as session:
            session.step(bare.sites)

            async def step() -> None:
                session.step(next(conformers))

            seconds, base = await p50_in_turn(step, lambda: bare.gradients(next(conformers)), STEPS)
    return Figure(
        "the same with the synchronous client",
        seconds / base,
        details=milliseconds(seconds, base),
    )


async def _xray(server: EmbeddedMesh) -> Figure:
    bare = BareXray()
    conformers: Any = cycle(jittered(bare.sites, 0.02, 64))
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        model = await mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L))
        async with mesh.session(model, target="xray") as session:
            await session.step(bare.sites)
            step, base = await p50_in_turn(
                lambda: session.step(next(conformers)),
                lambda: bare.gradients(next(conformers)),
                STEPS // 4,
            )
    return Figure(
        "session step, X-ray ml of 7n2l, against f_model in process",
        step / base,
        at_most=1.3,
        details=milliseconds(step, base),
    )
