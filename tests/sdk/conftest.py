"""A real mesh for the agents of the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.mesh.conftest import wait_until_it_serves

# Short, so that what waits for a lease does not wait long.
FAST = {
    "BXMESH_DELIVERY_LEASE": "2",
    "BXMESH_MESSAGE_ATTEMPTS": "3",
    "BXMESH_DRAIN_GRACE": "2",
}


def start_mesh(state_dir: Path | None = None, workers: int = 0, **environment: str) -> EmbeddedMesh:
    """A mesh, without geometry workers unless they are asked for; use it in a `with`."""
    return EmbeddedMesh(state_dir, workers=workers, env={**FAST, **environment})


def client(mesh: EmbeddedMesh) -> AsyncMesh:
    """A client of a mesh; use it in an `async with`."""
    return AsyncMesh(mesh.address, state_dir=mesh.state_dir)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[EmbeddedMesh]:
    """The mesh of the tests that break nothing."""
    with start_mesh() as mesh:
        yield mesh


@pytest.fixture
def workers_server() -> Iterator[EmbeddedMesh]:
    """A mesh with two geometry workers."""
    with start_mesh(workers=2) as mesh:
        wait_until_it_serves(mesh)
        yield mesh


@pytest.fixture
async def mesh(shared_server: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """A client of the shared mesh."""
    async with client(shared_server) as mesh:
        yield mesh


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state directory that outlives the mesh in it."""
    with tempfile.TemporaryDirectory(prefix="bx-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def lone_server(state_dir: Path) -> Iterator[EmbeddedMesh]:
    """A mesh to be stopped, killed and started again, which takes no longer than a lease."""
    with start_mesh(state_dir, BXMESH_DELIVERY_LEASE="30") as mesh:
        yield mesh


@pytest.fixture
async def lone(lone_server: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """A client of the mesh that is stopped and started."""
    async with client(lone_server) as mesh:
        yield mesh


@pytest.fixture(autouse=True)
def only_local_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BXMESH_")]:
        monkeypatch.delenv(name)
