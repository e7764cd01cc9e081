"""A real mesh with a worker, and libraries for workflows that keep to themselves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from bxmesh.client import Mesh, Model
from bxmesh.server.embedded import EmbeddedMesh
from tests.engine.wheel import MTZ_7N2L, PDB_7N2L, wheel_file
from tests.mesh.conftest import start_mesh, wait_until_it_serves

# Prefect and LangGraph read these when they are imported.
_HOME = tempfile.TemporaryDirectory(prefix="bx-prefect-", ignore_cleanup_errors=True)
os.environ |= {
    "PREFECT_HOME": _HOME.name,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
}


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedMesh]:
    """The mesh of the tests."""
    with start_mesh(1) as server:
        wait_until_it_serves(server)
        yield server


@pytest.fixture(autouse=True)
def only_this_mesh(monkeypatch: pytest.MonkeyPatch, server: EmbeddedMesh) -> None:
    """What is given no address finds the mesh as a client on its machine does."""
    for name in [name for name in os.environ if name.startswith("BXMESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BXMESH_STATE_DIR", str(server.state_dir))


@pytest.fixture(scope="session")
def mesh(server: EmbeddedMesh) -> Iterator[Mesh]:
    """A client of the mesh, to compare with."""
    with Mesh(server.address, state_dir=server.state_dir) as mesh:
        yield mesh


@pytest.fixture(scope="session")
def crystal(mesh: Mesh) -> Model:
    """7n2l with its reflections: 150 atoms, of which 67 hydrogens."""
    return mesh.create_model(wheel_file(PDB_7N2L), wheel_file(MTZ_7N2L), include_atoms=True)
