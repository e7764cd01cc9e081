"""Where the tasks find the mesh."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from bxmesh.client.sync import Mesh

__all__ = ["MeshConnection", "connected"]


class MeshConnection(Block):
    """Where the mesh is and what opens it, as a Prefect block, which keeps the key encrypted.

    What is left out comes from the environment of the process that runs the task, or from the state
    directory there, as with Mesh.
    """

    _block_type_name: ClassVar[str | None] = "bxmesh connection"
    _block_type_slug: ClassVar[str | None] = "bxmesh-connection"
    _description: ClassVar[str | None] = "Where a bxmesh is and what opens it."

    address: str | None = Field(default=None, description="HOST:PORT or unix:PATH.")
    api_key: SecretStr | None = Field(default=None, description="The key that says who calls.")
    tls: bool | None = Field(default=None, description="Whether to use TLS.")
    root_certificates: str | None = Field(
        default=None, description="The file of the certificates to trust (PEM)."
    )
    client_certificate: str | None = Field(
        default=None, description="The file of a certificate that says who calls (PEM)."
    )
    client_key: str | None = Field(default=None, description="The file of its private key (PEM).")
    state_dir: str | None = Field(
        default=None, description="The state directory of a mesh on the same machine."
    )


def connected(mesh: MeshConnection | None) -> Mesh:
    """Returns a connection that repeats no calls, since Prefect does; use it in a `with`."""
    where = mesh or MeshConnection()
    return Mesh(
        where.address,
        api_key=where.api_key.get_secret_value() if where.api_key else None,
        tls=where.tls,
        root_certificates=where.root_certificates,
        client_certificate=where.client_certificate,
        client_key=where.client_key,
        state_dir=where.state_dir,
        retries=0,
    )
