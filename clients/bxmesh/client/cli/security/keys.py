"""`bxmesh security keys`: API keys."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
from google.protobuf import json_format

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.durations import DURATION
from bxmesh.client.cli.security.paging import all_pages, day
from bxmesh.client.cli.tables import show
from bxmesh.client.cli.values import as_json, print_json
from bxmesh.security.v1 import credential_pb2 as pb

__all__ = ["keys"]

_output = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the secret to this new file, which only you can read, instead of to stdout.",
)
_lifetime = click.option("--lifetime", type=DURATION, help="How long it shall live: 12h, 90d.")


@click.group()
def keys() -> None:
    """Make, see, rotate and revoke API keys."""


@keys.command("create")
@click.argument("identity_id", default="")
@click.option("--name", "display_name", default="", help="A name for people.")
@click.option(
    "--permission", "permissions", multiple=True, help="Allow no more than this; repeatable."
)
@_lifetime
@_output
@connecting
def create_key(
    where: Where,
    identity_id: str,
    lifetime: timedelta | None,
    output: Path | None,
    **fields: Any,
) -> None:
    """Create a key, for yourself unless an identity is named, and show its secret, this once."""
    request = pb.CreateApiKeyRequest(request_id=str(uuid4()), identity_id=identity_id, **fields)
    if lifetime is not None:
        request.lifetime.FromTimedelta(lifetime)
    _check_output(output)
    with tracing("security keys create"), where.connect() as mesh:
        answer = mesh.security.call(request)
    _hand_over(answer.secret, output)
    key = answer.api_key
    click.echo(
        f"The key {key.key_id} of {key.identity_id} ends {day(key, 'expire_time') or 'never'}. "
        "Clients take it from BXMESH_API_KEY.",
        err=True,
    )


@keys.command("list")
@click.argument("identity_id", default="")
@click.option("--all", "include_ended", is_flag=True, help="Revoked and expired ones too.")
@as_json
@connecting
def list_keys(where: Where, identity_id: str, include_ended: bool, as_json: bool) -> None:
    """List keys, your own unless an identity is named, newest first."""
    request = pb.ListApiKeysRequest(identity_id=identity_id, include_ended=include_ended)
    with tracing("security keys list"), where.connect() as mesh:
        found = [key for page in all_pages(mesh, request) for key in page.api_keys]
    if as_json:
        print_json(
            [json_format.MessageToDict(key, preserving_proto_field_name=True) for key in found]
        )
        return
    show(
        ("key", "identity", "created", "ends", "last used", "name", "allows"),
        [
            (
                key.key_id,
                key.identity_id,
                day(key, "create_time"),
                _end(key),
                day(key, "last_used_time") or "never",
                key.display_name,
                ", ".join(key.permissions) or "all that its identity may",
            )
            for key in found
        ],
    )


@keys.command("rotate")
@click.argument("key_id")
@click.option("--overlap", type=DURATION, help="How long the old one still works; an hour.")
@_lifetime
@_output
@connecting
def rotate_key(
    where: Where,
    key_id: str,
    overlap: timedelta | None,
    lifetime: timedelta | None,
    output: Path | None,
) -> None:
    """Replace a key by a new one with the same rights; both work for a while."""
    request = pb.RotateApiKeyRequest(request_id=str(uuid4()), key_id=key_id)
    if overlap is not None:
        request.overlap.FromTimedelta(overlap)
    if lifetime is not None:
        request.lifetime.FromTimedelta(lifetime)
    _check_output(output)
    with tracing("security keys rotate"), where.connect() as mesh:
        answer = mesh.security.call(request)
    _hand_over(answer.secret, output)
    old = answer.old_api_key
    click.echo(f"{old.key_id} still works until {day(old, 'expire_time')}.", err=True)


@keys.command("revoke")
@click.argument("key_id")
@click.option("--reason", default="", help="Why, for the audit log.")
@connecting
def revoke_key(where: Where, key_id: str, reason: str) -> None:
    """End a key, on every server within a second."""
    request = pb.RevokeApiKeyRequest(request_id=str(uuid4()), key_id=key_id, reason=reason)
    with tracing("security keys revoke"), where.connect() as mesh:
        mesh.security.call(request)
    click.echo(f"{key_id} is refused from now on.", err=True)


def _end(key: pb.ApiKey) -> str:
    if key.HasField("revoke_time"):
        return f"revoked {day(key, 'revoke_time')}"
    return day(key, "expire_time") or "never"


def _check_output(output: Path | None) -> None:
    # Before the key is made: its secret is shown once.
    if output is not None and output.exists():
        raise click.ClickException(f"{output} is there already; name a new file.")


def _hand_over(secret: str, output: Path | None) -> None:
    if output is None:
        click.echo(secret)
        return
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secret}\n")
