"""Processes that are killed while they work. Nothing that was acknowledged may be lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from bxmesh.client import AsyncMesh
from bxmesh.client.errors import BxmeshError, NotFound, Unavailable
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import PDB_1YJP, wheel_bytes, wheel_file
from tests.mesh.conftest import start_mesh
from tests.processes import children, until, valkey_pid, worker_pids

LARGE = "mmtbx/regression/pdbs/AF_json_v3.pdb"


def client(mesh: EmbeddedMesh) -> AsyncMesh:
    return AsyncMesh(mesh.address, state_dir=mesh.state_dir)


async def test_worker_killed_while_it_calculates(frail: EmbeddedMesh) -> None:
    async with client(frail) as mesh:
        model = await mesh.create_model(wheel_file(LARGE), include_atoms=True)
        assert model.atoms is not None
        batch = model.atoms.sites + np.random.default_rng(1).normal(
            0, 0.5, (60, *model.atoms.sites.shape)
        )
        (victim,) = worker_pids(frail.pid)
        begun = asyncio.Event()
        call = asyncio.create_task(mesh.gradients(model, batch, on_progress=lambda p: begun.set()))
        await begun.wait()
        os.kill(victim, signal.SIGKILL)
        result = await call
        assert [sample.status for sample in result.samples] == ["ok"] * 60
        again = await mesh.gradients(model, batch[:2])
        np.testing.assert_allclose(
            again.arrays["geometry_sites"], result.arrays["geometry_sites"][:2], rtol=1e-9
        )


async def test_worker_killed_in_a_session(frail: EmbeddedMesh) -> None:
    async with client(frail) as mesh:
        model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
        assert model.atoms is not None
        sites = model.atoms.sites
        async with mesh.session(model) as session:
            first = await session.step(sites)
            (victim,) = worker_pids(frail.pid)
            os.kill(victim, signal.SIGKILL)
            second = await session.step(sites)
            np.testing.assert_array_equal(
                first.arrays["geometry_sites"], second.arrays["geometry_sites"]
            )


async def test_dead_worker_leaves_the_registry() -> None:
    with start_mesh(2) as server:
        async with client(server) as mesh:
            await until(lambda: _agents(mesh, 2))
            before = {agent.agent_id for agent in await mesh.agents()}
            os.kill(worker_pids(server.pid)[0], signal.SIGKILL)

            async def one_gone() -> bool:
                return len(before & {agent.agent_id for agent in await mesh.agents()}) == 1

            await until(one_gone)


async def _agents(mesh: AsyncMesh, count: int) -> bool:
    return len(await mesh.agents()) == count


async def test_server_killed_bundles_and_queued_work_remain(state_dir: Path) -> None:
    with EmbeddedMesh(state_dir, workers=1) as server:
        async with client(server) as mesh:
            model = await mesh.create_model(wheel_file(PDB_1YJP))
            before = {b.bundle_id async for b in mesh.bundles.list()}
        left = children(server.pid)
        server.kill()
        await until(
            lambda: (
                not any(Path(f"/proc/{pid}").exists() for pid in left if pid not in _valkeys(left))
            )
        )
        server.start()
        async with client(server) as mesh:
            assert before <= {b.bundle_id async for b in mesh.bundles.list()}
            result = await mesh.gradients(model)
            assert result.samples[0].status == "ok"
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def _valkeys(pids: list[int]) -> list[int]:
    from tests.processes import command

    return [pid for pid in pids if "valkey" in command(pid)]


async def test_valkey_restarted_under_load(frail: EmbeddedMesh) -> None:
    async with client(frail) as mesh:
        model = await mesh.create_model(wheel_file(PDB_1YJP), include_atoms=True)
        assert model.atoms is not None
        sites = model.atoms.sites
        await mesh.gradients(model, sites)
        failures: list[BxmeshError] = []

        async def load() -> int:
            done = 0
            for _ in range(40):
                try:
                    await mesh.gradients(model, sites, timeout=30)
                    done += 1
                except BxmeshError as error:
                    failures.append(error)
            return done

        loads = [asyncio.create_task(load()) for _ in range(4)]
        await asyncio.sleep(0.1)
        victim = valkey_pid(frail.pid)
        os.kill(victim, signal.SIGKILL)
        done = sum(await asyncio.gather(*loads))
        # Clean failures are allowed, silence is not.
        assert done + len(failures) == 160
        assert all(isinstance(failure, Unavailable) for failure in failures), failures
        assert done > 100
        assert (await mesh.gradients(model, sites)).samples[0].status == "ok"
        assert valkey_pid(frail.pid) != victim


async def test_broken_upload_leaves_nothing(mesh: AsyncMesh, shared_mesh: EmbeddedMesh) -> None:
    unfinished = list((shared_mesh.state_dir / "bundles").rglob("*"))
    with pytest.raises(NotFound):
        await mesh.bundles.get("sha256:" + "0" * 64)
    assert wheel_bytes(PDB_1YJP)
    assert len(list((shared_mesh.state_dir / "bundles").rglob("*"))) == len(unfinished)
