"""`bxmesh bundles`: look at, fetch and store bundles."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from bxmesh.client.bundles import KINDS, VISIBILITIES, Bundle, BundleKind, Visibility
from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.tables import show

__all__ = ["bundles"]

_SEERS = {"owner": "nobody else", "team": "your team", "all": "everybody"}

_kind = click.option("--kind", type=click.Choice(KINDS.choices), help="What the content is.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_bundle_id = click.argument("bundle_id")


@click.group()
def bundles() -> None:
    """Look at, fetch and store bundles."""


@bundles.command("list")
@_kind
@_json
@connecting
def list_bundles(where: Where, kind: BundleKind | None, as_json: bool) -> None:
    """List the bundles on the mesh."""
    with tracing("bundles list"), where.connect() as mesh:
        found = list(mesh.bundles.list(kind))
    if as_json:
        click.echo(json.dumps([_plain(bundle) for bundle in found]))
        return
    rows = [
        (b.bundle_id, b.kind, f"{b.size_bytes:,}", b.display_name, _time(b.expire_time))
        for b in found
    ]
    show(("bundle", "kind", "bytes", "name", "expires"), rows)


@bundles.command("show")
@_bundle_id
@_json
@connecting
def show_bundle(where: Where, bundle_id: str, as_json: bool) -> None:
    """Describe a bundle."""
    with tracing("bundles show"), where.connect() as mesh:
        _print(mesh.bundles.get(bundle_id), as_json)


@bundles.command()
@_bundle_id
@click.argument("path", type=click.Path(path_type=Path), required=False)
@connecting
def download(where: Where, bundle_id: str, path: Path | None) -> None:
    """Write a bundle's content to PATH, by default to a file of its own name."""
    with tracing("bundles download"), where.connect() as mesh:
        if path is None or path.is_dir():
            name = Path(mesh.bundles.get(bundle_id).display_name).name
            path = (path or Path()) / (name or bundle_id.removeprefix("sha256:"))
            if path.exists():
                raise click.UsageError(f"{path} is there already; say where to write to.")
        click.echo(mesh.bundles.download(bundle_id, path))


@bundles.command()
@click.argument("bundle_ids", nargs=-1, required=True)
@connecting
def delete(where: Where, bundle_ids: tuple[str, ...]) -> None:
    """Delete bundles."""
    with tracing("bundles delete"), where.connect() as mesh:
        for bundle_id in bundle_ids:
            mesh.bundles.delete(bundle_id)
            click.echo(f"deleted {bundle_id}")


@bundles.command()
@click.argument("bundle_ids", nargs=-1, required=True)
@click.option(
    "--with",
    "visibility",
    type=click.Choice(VISIBILITIES.choices),
    required=True,
    help="With whom.",
)
@connecting
def share(where: Where, bundle_ids: tuple[str, ...], visibility: Visibility) -> None:
    """Say who else sees bundles, or models, of yours."""
    with tracing("bundles share"), where.connect() as mesh:
        for bundle_id in bundle_ids:
            mesh.bundles.share(bundle_id, visibility)
            click.echo(f"{bundle_id} is seen by {_SEERS[visibility]}", err=True)


@bundles.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_kind
@click.option("--name", help="A name for people, by default the file's.")
@_json
@connecting
def upload(
    where: Where, path: Path, kind: BundleKind | None, name: str | None, as_json: bool
) -> None:
    """Store the content of PATH."""
    with tracing("bundles upload"), where.connect() as mesh:
        _print(mesh.bundles.upload(path, kind=kind, name=name), as_json)


def _print(bundle: Bundle, as_json: bool) -> None:
    values = _plain(bundle)
    if as_json:
        click.echo(json.dumps(values))
        return
    for field, value in values.items():
        text = "\n".join(value) if isinstance(value, tuple) else value
        if text != "":
            click.echo(f"{field:14}{text}")


def _plain(bundle: Bundle) -> dict[str, Any]:
    return {
        name: _time(value) if isinstance(value, datetime) else value
        for name, value in asdict(bundle).items()
    }


def _time(value: datetime) -> str:
    return value.isoformat(timespec="seconds")
