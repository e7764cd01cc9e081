"""`bxmesh security tokens`: short-lived tokens."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.durations import DURATION
from bxmesh.client.cli.security.paging import day
from bxmesh.client.cli.tables import show
from bxmesh.security.v1 import credential_pb2 as pb

__all__ = ["tokens"]


@click.group()
def tokens() -> None:
    """Issue and revoke short-lived tokens."""


@tokens.command("issue")
@click.option("--lifetime", type=DURATION, help="How long it shall live: 15m.")
@click.option(
    "--permission", "permissions", multiple=True, help="Allow no more than this; repeatable."
)
@click.option("--audience", default="", help="For whom, when it is not this mesh.")
@connecting
def issue(
    where: Where, lifetime: timedelta | None, permissions: tuple[str, ...], audience: str
) -> None:
    """Issue a token with at most your rights; print it alone to stdout."""
    request = pb.IssueTokenRequest(audience=audience, permissions=permissions)
    if lifetime is not None:
        request.lifetime.FromTimedelta(lifetime)
    with tracing("security tokens issue"), where.connect() as mesh:
        answer = mesh.security.call(request)
    click.echo(answer.token)
    click.echo(
        f"It ends {day(answer, 'expire_time')}. To end it before: "
        f"bxmesh security tokens revoke {answer.token_id}",
        err=True,
    )


@tokens.command("revoke")
@click.argument("token_id")
@click.option("--reason", default="", help="Why, for the audit log.")
@connecting
def revoke(where: Where, token_id: str, reason: str) -> None:
    """End a token before its time, on every server within a second."""
    request = pb.RevokeTokenRequest(request_id=str(uuid4()), token_id=token_id, reason=reason)
    with tracing("security tokens revoke"), where.connect() as mesh:
        mesh.security.call(request)
    click.echo("The token is refused from now on.", err=True)


@tokens.command("keys")
@connecting
def keys(where: Where) -> None:
    """List the public keys that verify tokens."""
    with tracing("security tokens keys"), where.connect() as mesh:
        answer = mesh.security.call(pb.ListTokenKeysRequest())
    click.echo(f"issuer {answer.issuer}", err=True)
    show(
        ("key", "Ed25519 public key", "verifies until"),
        [
            (key.key_id, key.public_key.hex(), day(key, "expire_time") or "it is replaced")
            for key in answer.keys
        ],
    )
