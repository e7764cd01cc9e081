"""Keys of identities on a mesh that runs as a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from bxmesh.security.v1 import credential_pb2, identity_pb2
from bxmesh.security.v1.security_service_pb2_grpc import SecurityServiceStub
from bxmesh.server.embedded import EmbeddedMesh
from tests.security.mesh import bearer

__all__ = ["admin_key", "make_key"]


def admin_key(mesh: EmbeddedMesh) -> str:
    """Returns the key that a mesh made for this machine."""
    return (mesh.state_dir / "admin.key").read_text().strip()


async def make_key(
    mesh: EmbeddedMesh, identity_id: str, *permissions: str, roles: Sequence[str] = ()
) -> str:
    """Makes an identity; returns a key of it."""
    metadata = bearer(admin_key(mesh))
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        security: Any = SecurityServiceStub(channel)
        await security.CreateIdentity(
            identity_pb2.CreateIdentityRequest(
                identity=identity_pb2.Identity(
                    identity_id=identity_id,
                    kind=identity_pb2.IDENTITY_KIND_USER,
                    permissions=permissions,
                    roles=roles,
                )
            ),
            metadata=metadata,
        )
        answer = await security.CreateApiKey(
            credential_pb2.CreateApiKeyRequest(identity_id=identity_id), metadata=metadata
        )
        secret: str = answer.secret
        return secret
