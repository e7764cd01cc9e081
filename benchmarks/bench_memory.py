"""Memory of an idle server, and of a worker over a thousand different models."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from benchmarks.bare import wheel_file
from benchmarks.figures import Figure
from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh

MODELS = int(os.environ.get("BXMESH_BENCH_MODELS", "1000"))
SMALL = "iotbx/regression/data/1yjp.pdb"


def resident_megabytes(pid: int) -> float:
    """What a process holds in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def worker_pid(server_pid: int) -> int:
    """The only worker of a server."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == server_pid and b"bxmesh.server.geometry.agent" in words:
                return int(entry.name)
    raise ProcessLookupError("no worker")


def run() -> list[Figure]:
    with EmbeddedMesh(workers=1) as server:
        time.sleep(3.0)
        idle = resident_megabytes(server.pid)
        start, full, end = asyncio.run(_models(server))
        served = resident_megabytes(server.pid)
    return [
        Figure("server process, idle", idle, "MB", at_most=150),
        Figure(f"server process after {MODELS} models", served, "MB"),
        Figure(
            f"worker after {MODELS} models against after its first 50",
            end / full,
            at_most=1.25,
            details=f"{start:.0f} MB warm, {full:.0f} MB after 50, {end:.0f} MB at the end",
        ),
    ]


async def _models(server: EmbeddedMesh) -> tuple[float, float, float]:
    text = wheel_file(SMALL).read_bytes()
    async with AsyncMesh(server.address, state_dir=server.state_dir) as mesh:
        await mesh.gradients(await mesh.create_model(text))
        pid = worker_pid(server.pid)
        start = full = resident_megabytes(pid)
        for number in range(MODELS):
            model = await mesh.create_model(b"REMARK   2 MODEL %d\n" % number + text)
            await mesh.gradients(model)
            if number == 50:
                full = resident_megabytes(pid)
        return start, full, resident_megabytes(pid)
