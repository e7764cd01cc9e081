"""The options that say where the mesh is, and the mesh that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from bxmesh.client.cli.failures import ServerMissing
from bxmesh.client.endpoint import find_server
from bxmesh.client.errors import BxmeshError
from bxmesh.client.sync import Mesh
from bxmesh.client.trace import traced

__all__ = ["Where", "connecting", "tracing"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Where:
    """Where the mesh is, as far as the command line says it."""

    address: str | None
    state_dir: Path | None
    tls: bool | None
    root_certificates: Path | None

    def connect(self) -> Mesh:
        """Returns a connection to that mesh."""
        return Mesh(
            self.address,
            state_dir=self.state_dir,
            tls=self.tls,
            root_certificates=self.root_certificates,
        )

    @contextmanager
    def connect_or_embed(self, announce: Callable[[str], None]) -> Iterator[Mesh]:
        """Gives a connection to that mesh or, where none runs, to one started for the occasion."""
        if self.address or os.environ.get("BXMESH_ADDRESS") or find_server(self.state_dir):
            with self.connect() as mesh:
                yield mesh
            return
        announce("starting a mesh")
        try:
            from bxmesh.server.embedded import EmbeddedMesh
        except ModuleNotFoundError as error:
            raise ServerMissing("Computing without a running mesh", error) from error
        state_dir = str(self.state_dir) if self.state_dir else None
        with (
            EmbeddedMesh(state_dir=state_dir, workers=1) as embedded,
            Mesh(embedded.address, state_dir=embedded.state_dir) as mesh,
        ):
            yield mesh


def connecting(command: F) -> F:
    """Adds the options; the command gets them as `where`."""

    def collect(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        where = ctx.meta.setdefault("bxmesh.where", {})
        where[parameter.name] = value
        ctx.params["where"] = Where(
            **{name: where.get(name) for name in Where.__dataclass_fields__}
        )

    directory = click.Path(path_type=Path, file_okay=False)
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option("--root-certificates", type=file, help="Trust these certificates (PEM)."),
        click.option("--tls/--no-tls", default=None, help="Use TLS."),
        click.option("--state-dir", type=directory, help="The state directory of a local mesh."),
        click.option("--address", help="Where the mesh is: HOST:PORT or unix:PATH."),
    ):
        option(command)
    for parameter in command.__click_params__[-4:]:  # type: ignore[attr-defined]
        parameter.expose_value = False
        parameter.callback = collect
    return command


@contextmanager
def tracing(command: str) -> Iterator[str]:
    """Runs a command as one trace and gives its id, which errors then carry too."""
    with traced(f"bxmesh {command}") as trace_id:
        try:
            yield trace_id
        except BxmeshError as error:
            error.trace_id = error.trace_id or trace_id
            raise
