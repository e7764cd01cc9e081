"""`bxmesh http`."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bxmesh.client.endpoint import Endpoint, resolve, state_directory

if TYPE_CHECKING:
    from bxmesh.server.http.settings import HttpSettings

__all__ = ["http"]

_EPILOG = (
    "Every option can also come from the environment: --max-requests from BXMESH_HTTP_MAX_REQUESTS, "
    "and so on. The gateway has no rights of its own: each request needs a key of the mesh."
)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(epilog=_EPILOG)
@click.option("--address", metavar="HOST:PORT", help="Where to serve; 127.0.0.1:8080.")
@click.option("--endpoint", metavar="HOST:PORT|unix:PATH", help="Where the mesh is.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Of that mesh.")
@click.option("--mesh-tls/--no-mesh-tls", default=None, help="Use TLS to the mesh.")
@click.option("--root-certificates", type=_FILE, help="Trust these for the mesh (PEM).")
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin call, https://example.org; repeatable.",
)
@click.option(
    "--tls", is_flag=True, help="TLS by what `bxmesh tls init` made in the state directory."
)
@click.option("--tls-certificate", type=_FILE)
@click.option("--tls-key", type=_FILE)
@click.option("--allow-insecure", is_flag=True, default=None, help="No TLS on public addresses.")
@click.option("--max-requests", type=int, metavar="N", help="Requests answered at a time; 64.")
@click.option("--max-streams", type=int, metavar="N", help="Streams open at a time; 256.")
@click.option("--max-upload-bytes", type=int, metavar="N", help="The largest upload; 64 MiB.")
@click.option("--request-timeout", type=float, metavar="SECONDS", help="For a request; 600.")
def http(
    endpoint: str | None,
    state_dir: Path | None,
    mesh_tls: bool | None,
    root_certificates: Path | None,
    tls: bool,
    **options: Any,
) -> None:
    """Serve HTTP for people and browsers until it is interrupted."""
    try:
        from pydantic import ValidationError

        from bxmesh.server.http.serving import serving as _  # noqa: F401
        from bxmesh.server.http.settings import HttpSettings
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`bxmesh http` needs {error.name}.\n  remedy: pip install 'bxmesh[http]'"
        ) from error
    values = {name: value for name, value in options.items() if value not in (None, ())}
    if tls:
        folder = state_directory(state_dir) / "tls"
        values.setdefault("tls_certificate", folder / "server.pem")
        values.setdefault("tls_key", folder / "server.key")
    try:
        settings = HttpSettings(**values)
    except ValidationError as error:
        raise click.UsageError(
            "\n".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        ) from None
    where = _mesh(endpoint, state_dir, mesh_tls, root_certificates, settings.allow_insecure)
    logging.basicConfig(level=os.environ.get("BXMESH_LOG_LEVEL", "WARNING").upper())
    try:
        asyncio.run(_serve(settings, where))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _mesh(
    address: str | None,
    state_dir: Path | None,
    tls: bool | None,
    root_certificates: Path | None,
    allow_insecure: bool,
) -> Endpoint:
    # Keys of callers go there, so a place without TLS is refused as for a key of one's own.
    found = resolve(
        address,
        api_key="of whoever calls",
        tls=tls,
        root_certificates=root_certificates,
        state_dir=state_dir,
        allow_insecure=True if allow_insecure else None,
    )
    return replace(found, api_key="")


async def _serve(settings: HttpSettings, endpoint: Endpoint) -> None:
    from bxmesh.server.http.serving import serving, until_stopped

    async with serving(settings, endpoint) as url:
        click.echo(f"bxmesh serves {url} for the mesh at {endpoint.address}", err=True)
        await until_stopped()
        click.echo("bxmesh stops", err=True)
