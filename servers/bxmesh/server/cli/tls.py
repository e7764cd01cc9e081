"""`bxmesh tls`: certificates for development."""

from __future__ import annotations

import re
from pathlib import Path

import click

from bxmesh.client.endpoint import state_directory
from bxmesh.server.security.certificates import CA_FILE, Authority, write_pair

__all__ = ["tls"]

_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LOCAL = ("localhost", "127.0.0.1", "::1")


@click.group()
def tls() -> None:
    """Make certificates for development."""


@tls.command("init")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--host", "hosts", multiple=True, help="A name or address of the server; repeatable.")
@click.option(
    "--client", "clients", multiple=True, metavar="IDENTITY", help="Who shall have one; repeatable."
)
@click.option("--days", type=click.IntRange(1, 825), default=90, show_default=True)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The state directory, in whose tls/ they go unless a directory is named.",
)
def init(
    directory: Path | None,
    hosts: tuple[str, ...],
    clients: tuple[str, ...],
    days: int,
    state_dir: Path | None,
) -> None:
    """Make an authority, a certificate for the server, and some for clients.

    An authority that is there is kept; certificates are made anew, and a running server takes
    them up.
    """
    for client in clients:
        if not _IDENTITY.fullmatch(client):
            raise click.BadParameter(f"{client!r} is no identity's name", param_hint="--client")
    folder = directory or state_directory(state_dir) / "tls"
    try:
        authority = Authority.load_or_create(folder)
        write_pair(
            folder / "server.pem",
            folder / "server.key",
            *authority.server([*_LOCAL, *hosts], days),
        )
        for client in clients:
            write_pair(
                folder / f"client-{client}.pem",
                folder / f"client-{client}.key",
                *authority.client(client, days),
            )
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"In {folder}, for {days} days, for {', '.join([*_LOCAL, *hosts])}:")
    click.echo("  ca.pem       trust it where clients run; ca.key signs, keep it to yourself")
    click.echo("  server.pem   served by: bxmesh serve --listen 0.0.0.0:50051 --tls")
    for client in clients:
        click.echo(
            f"  client-{client}.pem   is the identity {client}, where certificates are asked for:"
        )
    if clients:
        click.echo(f"    bxmesh serve … --tls --tls-client-ca {folder / CA_FILE}")
    click.echo("Clients on this machine find ca.pem by themselves; elsewhere:")
    click.echo("  bxmesh status --address HOST:50051 --root-certificates ca.pem")
