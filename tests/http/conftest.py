"""A mesh as a process, and a gateway before it: real sockets on both sides."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from bxmesh.client import AsyncMesh
from bxmesh.server.embedded import EmbeddedMesh
from tests.http.gateways import gateway, http_client
from tests.http.keys import admin_key
from tests.mesh.conftest import start_mesh, wait_until_it_serves


@pytest.fixture(scope="session")
def http_mesh() -> Iterator[EmbeddedMesh]:
    """The mesh of these tests."""
    with start_mesh(1) as mesh:
        wait_until_it_serves(mesh)
        yield mesh


@pytest.fixture(autouse=True)
def only_given_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BXMESH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def url(http_mesh: EmbeddedMesh) -> AsyncIterator[str]:
    """A gateway's URL."""
    async with gateway(http_mesh) as url:
        yield url


@pytest.fixture
async def http(url: str, http_mesh: EmbeddedMesh) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the admin's key."""
    async with http_client(url, admin_key(http_mesh)) as client:
        yield client


@pytest.fixture
async def agents(http_mesh: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """The mesh, for agents that take part."""
    async with AsyncMesh(http_mesh.address, state_dir=http_mesh.state_dir) as mesh:
        yield mesh
