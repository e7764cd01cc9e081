"""The options that say where the mesh is, and the mesh that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bxmesh.client.cli.failures import ServerMissing
from bxmesh.client.endpoint import find_server
from bxmesh.client.errors import BxmeshError
from bxmesh.client.sync import Mesh
from bxmesh.client.trace import traced

__all__ = ["Where", "connecting", "tracing"]


@dataclass(frozen=True)
class Where:
    """Where the mesh is, as far as the command line says it."""

    address: str | None
    state_dir: Path | None
    tls: bool | None
    root_certificates: Path | None
    client_certificate: Path | None
    client_key: Path | None

    def connect(self) -> Mesh:
        """Returns a connection to that mesh."""
        return Mesh(
            self.address,
            state_dir=self.state_dir,
            tls=self.tls,
            root_certificates=self.root_certificates,
            client_certificate=self.client_certificate,
            client_key=self.client_key,
        )

    @contextmanager
    def connect_or_embed(self, announce: Callable[[str], None]) -> Iterator[Mesh]:
        """Gives a connection to that mesh or, where none runs, to one started for the occasion."""
        if self.address or os.environ.get("BXMESH_ADDRESS") or find_server(self.state_dir):
            with self.connect() as mesh:
                yield mesh
            return
        announce("start")
        try:
            from bxmesh.server.embedded import EmbeddedMesh, EmbeddedMeshError
        except ModuleNotFoundError as error:
            raise ServerMissing("Computing without a running mesh", error) from error
        with ExitStack() as stack:
            try:
                embedded = stack.enter_context(EmbeddedMesh(state_dir=self.state_dir, workers=1))
            except EmbeddedMeshError as error:
                raise click.ClickException(f"{error}\n  remedy: run `bxmesh doctor`.") from error
            yield stack.enter_context(Mesh(embedded.address, state_dir=embedded.state_dir))


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; the command gets them as `where`."""

    @click.option("--address", help="Where the mesh is: HOST:PORT or unix:PATH.")
    @click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="The state directory of a mesh on this machine.",
    )
    @click.option("--tls/--no-tls", default=None, help="Use TLS.")
    @click.option(
        "--root-certificates",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Trust these certificates (PEM).",
    )
    @click.option(
        "--client-certificate",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Be whom this certificate names (PEM).",
    )
    @click.option(
        "--client-key",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Its private key (PEM).",
    )
    @wraps(command)
    def call(
        *arguments: Any,
        address: str | None,
        state_dir: Path | None,
        tls: bool | None,
        root_certificates: Path | None,
        client_certificate: Path | None,
        client_key: Path | None,
        **options: Any,
    ) -> None:
        where = Where(address, state_dir, tls, root_certificates, client_certificate, client_key)
        command(*arguments, where=where, **options)

    return call


@contextmanager
def tracing(command: str) -> Iterator[str]:
    """Runs a command as one trace and gives its id, which errors then carry too."""
    with traced(f"bxmesh {command}") as trace_id:
        try:
            yield trace_id
        except BxmeshError as error:
            error.trace_id = error.trace_id or trace_id
            raise
