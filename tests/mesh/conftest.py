"""A real mesh for the tests: server, Valkey and two workers, as `bxmesh serve` starts them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import PDB_1YJP, wheel_file
from tests.mesh.raw import stats
from tests.processes import children, until
from tests.tracing.otlp import otlp

__all__ = ["frail", "frail_mesh", "lone", "lone_mesh", "mesh", "otlp", "shared_mesh", "state_dir"]

SERVING = health_pb2.HealthCheckResponse.SERVING

# Short, so that what waits for a lease or a heartbeat does not wait long.
FAST = {
    "BXMESH_HEARTBEAT": "0.5",
    "BXMESH_WORK_LEASE": "2",
    "BXMESH_DRAIN_GRACE": "2",
}


def start_mesh(workers: int = 1, *arguments: str, **environment: str) -> EmbeddedMesh:
    """A mesh with a state directory of its own; use it in a `with`."""
    return EmbeddedMesh(workers=workers, env={**FAST, **environment}, arguments=arguments)


def wait_until_it_serves(mesh: EmbeddedMesh) -> None:
    """Waits until the health service says that all serves, workers too."""
    with grpc.insecure_channel(mesh.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + 100
        while stub.Check(health_pb2.HealthCheckRequest()).status != SERVING:
            assert time.monotonic() < deadline, mesh.log_path.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="session")
def shared_mesh() -> Iterator[EmbeddedMesh]:
    """The mesh of the tests that break nothing. Nothing may be left of it afterwards."""
    with start_mesh(2) as mesh:
        wait_until_it_serves(mesh)
        pids = children(mesh.pid)
        yield mesh
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="session")
def frail_mesh() -> Iterator[EmbeddedMesh]:
    """A mesh with one worker, which is killed, and Valkey too; others take their place."""
    with start_mesh(1) as mesh:
        yield mesh


@pytest.fixture
def frail(frail_mesh: EmbeddedMesh) -> EmbeddedMesh:
    """That mesh, when its worker is there again."""
    wait_until_it_serves(frail_mesh)
    return frail_mesh


@pytest.fixture(scope="session")
def lone_mesh() -> Iterator[EmbeddedMesh]:
    """A mesh with one worker, so that it is known who does the work; it keeps few models."""
    with start_mesh(1, BXMESH_WARM_MODELS="3") as mesh:
        wait_until_it_serves(mesh)
        yield mesh


@pytest.fixture
async def lone(lone_mesh: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """A client of the mesh with one worker."""
    async with AsyncMesh(lone_mesh.address, state_dir=lone_mesh.state_dir) as client:
        yield client


@pytest.fixture
async def mesh(shared_mesh: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """A client of the shared mesh."""
    async with AsyncMesh(shared_mesh.address, state_dir=shared_mesh.state_dir) as client:
        yield client


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state directory that outlives the mesh in it."""
    with tempfile.TemporaryDirectory(prefix="bx-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def only_local_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BXMESH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def nothing_left_behind(lone: AsyncMesh, lone_mesh: EmbeddedMesh) -> AsyncIterator[None]:
    """After every test the queue and the dead letters are empty, and a calculation goes through."""
    yield

    async def empty() -> bool:
        now = await stats(lone_mesh)
        assert now.dead == 0
        return now.waiting == now.pending == now.delayed == 0

    await until(empty)
    assert (await lone.gradients(await lone.create_model(wheel_file(PDB_1YJP)))).ok

    async def no_sessions() -> bool:
        (agent,) = await lone.agents()
        return agent.metadata["sessions"] == "0"

    await until(no_sessions)
    assert not list((lone_mesh.state_dir / "bundles" / "incoming").glob("*"))
