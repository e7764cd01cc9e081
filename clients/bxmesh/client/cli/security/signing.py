"""`bxmesh security signing`: the keys that sign messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import click
from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.durations import DURATION
from bxmesh.client.cli.security.paging import day
from bxmesh.client.cli.tables import show
from bxmesh.client.sync import Mesh
from bxmesh.security.v1 import identity_pb2 as pb

__all__ = ["signing"]


@click.group()
def signing() -> None:
    """Make, see and remove the keys that sign messages."""


@signing.command("create")
@click.argument("identity_id")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the private key to this new file, which only you can read.",
)
@click.option("--lifetime", type=DURATION, help="How long it shall be accepted: 90d.")
@connecting
def create(where: Where, identity_id: str, output: Path, lifetime: timedelta | None) -> None:
    """Make a key for an identity: the private one in a file here, the public one in the mesh."""
    try:
        from bxmesh.signing import SigningKey

        key = SigningKey.create(output)
    except (ImportError, OSError) as error:
        raise click.ClickException(str(error)) from error
    made = pb.MessageKey(key_id=key.key_id, public_key=key.public_key)
    if lifetime is not None:
        made.expire_time.FromDatetime(datetime.now(UTC) + lifetime)
    try:
        with tracing("security signing create"), where.connect() as mesh:
            identity = _identity(mesh, identity_id)
            _update(mesh, identity, [*identity.message_keys, made])
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    click.echo(key.key_id)
    click.echo(
        f"{output} signs messages of {identity_id}: set BXMESH_SIGNING_KEY to it where they are sent.",
        err=True,
    )


@signing.command("list")
@click.argument("identity_id", default="")
@connecting
def list_keys(where: Where, identity_id: str) -> None:
    """List the public keys of an identity, by default your own."""
    with tracing("security signing list"), where.connect() as mesh:
        answer = mesh.security.call(pb.ListMessageKeysRequest(identity_id=identity_id))
    show(
        ("key", "Ed25519 public key", "accepted until"),
        [
            (key.key_id, key.public_key.hex(), day(key, "expire_time") or "it is deleted")
            for key in answer.message_keys
        ],
    )


@signing.command("delete")
@click.argument("identity_id")
@click.argument("key_id")
@connecting
def delete(where: Where, identity_id: str, key_id: str) -> None:
    """Delete a key: what it signed is not believed any more."""
    with tracing("security signing delete"), where.connect() as mesh:
        identity = _identity(mesh, identity_id)
        kept = [key for key in identity.message_keys if key.key_id != key_id]
        if len(kept) == len(identity.message_keys):
            raise click.ClickException(f"{identity_id} has no message key {key_id}.")
        _update(mesh, identity, kept)
    click.echo("It is not accepted any more.", err=True)


def _identity(mesh: Mesh, identity_id: str) -> pb.Identity:
    identity: pb.Identity = mesh.security.call(
        pb.GetIdentityRequest(identity_id=identity_id)
    ).identity
    return identity


def _update(mesh: Mesh, identity: pb.Identity, keys: list[pb.MessageKey]) -> None:
    mesh.security.call(
        pb.UpdateIdentityRequest(
            request_id=str(uuid4()),
            identity=pb.Identity(identity_id=identity.identity_id, message_keys=keys),
            update_mask=FieldMask(paths=["message_keys"]),
            expected_revision=identity.revision,
        )
    )
