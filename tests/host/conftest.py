"""A server for the tests, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from bxmesh.client import AsyncMesh
from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.server.embedded import EmbeddedMesh
from tests.sdk.conftest import client, start_mesh

__all__ = ["become", "served"]


@pytest.fixture(scope="session")
def served() -> Iterator[EmbeddedMesh]:
    """The mesh of these tests."""
    with start_mesh() as mesh:
        yield mesh


@pytest.fixture
async def mesh(served: EmbeddedMesh) -> AsyncIterator[AsyncMesh]:
    """A client that may do everything."""
    async with client(served) as mesh:
        yield mesh


async def become(mesh: AsyncMesh, name: str, *permissions: str) -> AsyncMesh:
    """A client of an identity that is made for it; use it in an `async with`."""
    identity = identity_pb2.Identity(
        identity_id=name, kind=identity_pb2.IDENTITY_KIND_USER, permissions=permissions
    )
    await mesh.security.call(identity_pb2.CreateIdentityRequest(identity=identity))
    answer = await mesh.security.call(credential_pb2.CreateApiKeyRequest(identity_id=name))
    return AsyncMesh(mesh.address, api_key=answer.secret)
