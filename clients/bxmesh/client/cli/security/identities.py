"""`bxmesh security whoami|identities|grant|revoke`: those who may call."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import click
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.paging import all_pages, day
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import as_json, print_json
from bxmesh.security.v1 import identity_pb2 as pb

__all__ = ["grant", "identities", "revoke", "whoami"]

_KINDS = {
    "user": pb.IDENTITY_KIND_USER,
    "agent": pb.IDENTITY_KIND_AGENT,
    "service": pb.IDENTITY_KIND_SERVICE,
}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}

_roles = click.option("--role", "roles", multiple=True, help="A role; repeatable.")


@click.command()
@as_json
@connecting
def whoami(where: Where, as_json: bool) -> None:
    """Say who you are and what you may do."""
    with tracing("security whoami"), where.connect() as mesh:
        _describe(mesh.security.call(pb.GetIdentityRequest()), as_json)


@click.group()
def identities() -> None:
    """See, make and delete those who may call."""


@identities.command("list")
@click.option("--role", default="", help="Has this role.")
@click.option("--team", default="", help="Is of this team.")
@as_json
@connecting
def list_identities(where: Where, role: str, team: str, as_json: bool) -> None:
    """List identities."""
    with tracing("security identities list"), where.connect() as mesh:
        found = [
            identity
            for page in all_pages(mesh, pb.ListIdentitiesRequest(role=role, team=team))
            for identity in page.identities
        ]
    if as_json:
        print_json([_plain(identity) for identity in found])
        return
    show(
        ("identity", "kind", "team", "last call", "roles and permissions"),
        [
            (
                identity.identity_id,
                _KIND_NAMES.get(identity.kind, ""),
                identity.team,
                day(identity, "last_used_time") or "never",
                "disabled" if identity.disabled else _rights(identity),
            )
            for identity in found
        ],
    )


@identities.command("show")
@click.argument("identity_id")
@as_json
@connecting
def show_identity(where: Where, identity_id: str, as_json: bool) -> None:
    """Describe an identity and all that it may do."""
    with tracing("security identities show"), where.connect() as mesh:
        _describe(mesh.security.call(pb.GetIdentityRequest(identity_id=identity_id)), as_json)


@identities.command("create")
@click.argument("identity_id")
@click.option("--kind", type=click.Choice(list(_KINDS)), default="user", show_default=True)
@click.option("--name", "display_name", default="", help="A name for people.")
@click.option("--team", default="", help="The team with which it may share.")
@_roles
@click.option("--permission", "permissions", multiple=True, help="A permission; repeatable.")
@click.option(
    "--certificate-name",
    "certificate_names",
    multiple=True,
    help="A subject alternative name of certificates that are it; repeatable.",
)
@connecting
def create_identity(where: Where, identity_id: str, kind: str, **fields: Any) -> None:
    """Create someone who may call; `bxmesh security keys create` makes a key for it."""
    identity = pb.Identity(identity_id=identity_id, kind=_KINDS[kind], **fields)
    request = pb.CreateIdentityRequest(request_id=str(uuid4()), identity=identity)
    with tracing("security identities create"), where.connect() as mesh:
        mesh.security.call(request)
    click.echo(
        f"{identity_id} is created. A key for it: bxmesh security keys create {identity_id}",
        err=True,
    )


def _switch(where: Where, identity_id: str, disabled: bool) -> None:
    request = pb.UpdateIdentityRequest(
        request_id=str(uuid4()),
        identity=pb.Identity(identity_id=identity_id, disabled=disabled),
        update_mask=FieldMask(paths=["disabled"]),
    )
    with tracing("security identities update"), where.connect() as mesh:
        mesh.security.call(request)
    click.echo(f"{identity_id} is {'refused from now on' if disabled else 'admitted'}.", err=True)


@identities.command("disable")
@click.argument("identity_id")
@connecting
def disable_identity(where: Where, identity_id: str) -> None:
    """Refuse an identity everywhere, until it is enabled."""
    _switch(where, identity_id, True)


@identities.command("enable")
@click.argument("identity_id")
@connecting
def enable_identity(where: Where, identity_id: str) -> None:
    """Admit a disabled identity again."""
    _switch(where, identity_id, False)


@identities.command("delete")
@click.argument("identity_id")
@click.confirmation_option(prompt="Its keys and tokens end with it. Go on?")
@connecting
def delete_identity(where: Where, identity_id: str) -> None:
    """Delete an identity with its keys and tokens."""
    request = pb.DeleteIdentityRequest(request_id=str(uuid4()), identity_id=identity_id)
    with tracing("security identities delete"), where.connect() as mesh:
        mesh.security.call(request)
    click.echo(f"{identity_id} is deleted.", err=True)


@click.command()
@click.argument("identity_id")
@click.argument("permissions", nargs=-1)
@_roles
@connecting
def grant(
    where: Where, identity_id: str, permissions: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    """Give an identity permissions and roles."""
    _need_something(permissions, roles)
    request = pb.GrantPermissionsRequest(
        request_id=str(uuid4()), identity_id=identity_id, roles=roles, permissions=permissions
    )
    with tracing("security grant"), where.connect() as mesh:
        identity = mesh.security.call(request).identity
    click.echo(f"{identity_id} has {_rights(identity) or 'no rights'}.", err=True)


@click.command()
@click.argument("identity_id")
@click.argument("permissions", nargs=-1)
@_roles
@connecting
def revoke(
    where: Where, identity_id: str, permissions: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    """Take permissions and roles from an identity, on every server within a second."""
    _need_something(permissions, roles)
    request = pb.RevokePermissionsRequest(
        request_id=str(uuid4()), identity_id=identity_id, roles=roles, permissions=permissions
    )
    with tracing("security revoke"), where.connect() as mesh:
        identity = mesh.security.call(request).identity
    click.echo(f"{identity_id} has {_rights(identity) or 'no rights'}.", err=True)


def _need_something(permissions: tuple[str, ...], roles: tuple[str, ...]) -> None:
    if not permissions and not roles:
        raise click.UsageError(
            "name permissions or --role; `bxmesh security roles list` says what there is"
        )


def _rights(identity: pb.Identity) -> str:
    return ", ".join([*(f"role {role}" for role in identity.roles), *identity.permissions])


def _describe(answer: pb.GetIdentityResponse, as_json: bool) -> None:
    identity = answer.identity
    if as_json:
        print_json(
            {**_plain(identity), "effective_permissions": list(answer.effective_permissions)}
        )
        return
    facts(
        (
            ("identity", identity.identity_id),
            ("kind", _KIND_NAMES.get(identity.kind, "")),
            ("name", identity.display_name),
            ("team", identity.team),
            ("disabled", "yes" if identity.disabled else ""),
            ("roles", ", ".join(identity.roles)),
            ("certificates", ", ".join(identity.certificate_names)),
            ("message keys", ", ".join(key.key_id for key in identity.message_keys)),
            ("created", day(identity, "create_time")),
            ("last call", day(identity, "last_used_time")),
            ("may", ", ".join(answer.effective_permissions) or "nothing"),
        )
    )


def _plain(identity: pb.Identity) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(identity, preserving_proto_field_name=True)
    return plain
