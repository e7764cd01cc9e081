"""`bxmesh security roles`: sets of permissions, and what permissions there are."""

from __future__ import annotations

from uuid import uuid4

import click
from google.protobuf.field_mask_pb2 import FieldMask

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.paging import all_pages
from bxmesh.client.cli.tables import show
from bxmesh.client.cli.values import as_json, print_json
from bxmesh.security.v1 import role_pb2 as pb

__all__ = ["roles"]

_description = click.option("--description", default=None, help="What it is for.")


@click.group()
def roles() -> None:
    """See, make and change roles, and see what permissions there are."""


@roles.command("list")
@as_json
@connecting
def list_roles(where: Where, as_json: bool) -> None:
    """List roles with what they allow."""
    with tracing("security roles list"), where.connect() as mesh:
        found = [r for page in all_pages(mesh, pb.ListRolesRequest()) for r in page.roles]
    if as_json:
        print_json(
            [
                {
                    "role_id": role.role_id,
                    "description": role.description,
                    "built_in": role.built_in,
                    "permissions": list(role.permissions),
                }
                for role in found
            ]
        )
        return
    show(
        ("role", "made by", "for", "permissions"),
        [
            (
                role.role_id,
                "bxmesh" if role.built_in else "you",
                role.description,
                ", ".join(role.permissions),
            )
            for role in found
        ],
    )


@roles.command("permissions")
@as_json
@connecting
def list_permissions(where: Where, as_json: bool) -> None:
    """List all permissions there are and what asks for them."""
    with tracing("security roles permissions"), where.connect() as mesh:
        found = [
            permission
            for page in all_pages(mesh, pb.ListPermissionsRequest())
            for permission in page.permissions
        ]
    if as_json:
        print_json(
            [
                {"name": p.name, "description": p.description, "methods": list(p.methods)}
                for p in found
            ]
        )
        return
    show(
        ("permission", "allows", "methods"),
        [
            (p.name, p.description, ", ".join(method.rpartition("/")[2] for method in p.methods))
            for p in found
        ],
    )


@roles.command("create")
@click.argument("role_id")
@click.argument("permissions", nargs=-1, required=True)
@_description
@connecting
def create_role(
    where: Where, role_id: str, permissions: tuple[str, ...], description: str | None
) -> None:
    """Create a role of permissions."""
    role = pb.Role(role_id=role_id, description=description or "", permissions=permissions)
    with tracing("security roles create"), where.connect() as mesh:
        mesh.security.call(pb.CreateRoleRequest(request_id=str(uuid4()), role=role))
    click.echo(
        f"The role {role_id} is created. To give it: "
        f"bxmesh security grant IDENTITY --role {role_id}",
        err=True,
    )


@roles.command("update")
@click.argument("role_id")
@click.argument("permissions", nargs=-1)
@_description
@connecting
def update_role(
    where: Where, role_id: str, permissions: tuple[str, ...], description: str | None
) -> None:
    """Replace the permissions of a role, or its description."""
    paths = [*(["permissions"] if permissions else []), *(["description"] if description else [])]
    if not paths:
        raise click.UsageError("name the new permissions or --description")
    role = pb.Role(role_id=role_id, description=description or "", permissions=permissions)
    request = pb.UpdateRoleRequest(
        request_id=str(uuid4()), role=role, update_mask=FieldMask(paths=paths)
    )
    with tracing("security roles update"), where.connect() as mesh:
        mesh.security.call(request)
    click.echo(f"The role {role_id} is changed.", err=True)


@roles.command("delete")
@click.argument("role_id")
@click.confirmation_option(prompt="Whoever has it loses what only it allows. Go on?")
@connecting
def delete_role(where: Where, role_id: str) -> None:
    """Delete a role."""
    with tracing("security roles delete"), where.connect() as mesh:
        mesh.security.call(pb.DeleteRoleRequest(request_id=str(uuid4()), role_id=role_id))
    click.echo(f"The role {role_id} is deleted.", err=True)
