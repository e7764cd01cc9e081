"""`bxmesh security apply|policy|blocks`: what is refused or bounded beyond permissions."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import click
from google.protobuf import json_format

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.paging import all_pages, day
from bxmesh.client.cli.security.policy_file import EXAMPLE, policy_yaml, read_policy
from bxmesh.client.cli.tables import show
from bxmesh.client.cli.values import as_json, print_json
from bxmesh.security.v1 import policy_pb2 as pb

__all__ = ["apply", "blocks", "policy"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only check it and show what would change.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--comment", default="", help="Why, for the audit log.")
@connecting
def apply(where: Where, file: Path, dry_run: bool, yes: bool, comment: str) -> None:
    """Put the policy of a YAML file into force, after showing what changes."""
    request = pb.ApplyPolicyRequest(policy=read_policy(file), comment=comment, validate_only=True)
    with tracing("security apply"), where.connect() as mesh:
        tried = mesh.security.call(request)
        if not tried.changes:
            click.echo("Nothing changes.", err=True)
            return
        for change in tried.changes:
            _show(change)
        if dry_run:
            return
        if not yes:
            click.confirm("Put this into force on every server?", abort=True, err=True)
        request.validate_only = False
        request.request_id = str(uuid4())
        # What was shown is what is replaced. 0 stands for whatever there is.
        request.expected_version = tried.policy.version - 1
        applied = mesh.security.call(request)
    click.echo(f"Policy {applied.policy.version} is in force.", err=True)


@click.group()
def policy() -> None:
    """See the policy in force and those before it."""


@policy.command("show")
@click.argument("version", type=click.IntRange(min=0), default=0)
@as_json
@connecting
def show_policy(where: Where, version: int, as_json: bool) -> None:
    """Print the policy in force, or an older one, as YAML that `apply` takes."""
    with tracing("security policy show"), where.connect() as mesh:
        found = mesh.security.call(pb.GetPolicyRequest(version=version)).policy
    if as_json:
        plain = json_format.MessageToDict(found.policy, preserving_proto_field_name=True)
        print_json({"version": found.version, "policy": plain})
        return
    click.echo(f"# version {found.version}", err=True)
    click.echo(policy_yaml(found.policy), nl=False)


@policy.command("list")
@connecting
def list_policies(where: Where) -> None:
    """List the versions, newest first."""
    with tracing("security policy list"), where.connect() as mesh:
        found = [
            p for page in all_pages(mesh, pb.ListPolicyVersionsRequest()) for p in page.policies
        ]
    show(
        ("version", "applied", "by", "comment"),
        [(str(p.version), day(p, "create_time"), p.identity_id, p.comment) for p in found],
    )


@policy.command("example")
def example() -> None:
    """Print a policy to begin with."""
    click.echo(EXAMPLE, nl=False)


@click.group()
def blocks() -> None:
    """See addresses that are refused for a while, and admit them."""


@blocks.command("list")
@connecting
def list_blocks(where: Where) -> None:
    """List addresses that are refused for a while."""
    with tracing("security blocks list"), where.connect() as mesh:
        found = [b for page in all_pages(mesh, pb.ListIpBlocksRequest()) for b in page.blocks]
    show(
        ("address", "since", "until", "reason"),
        [(b.address, day(b, "create_time"), day(b, "expire_time"), b.reason) for b in found],
    )


@blocks.command("delete")
@click.argument("ip")
@connecting
def delete_block(where: Where, ip: str) -> None:
    """Admit an address again."""
    with tracing("security blocks delete"), where.connect() as mesh:
        mesh.security.call(pb.DeleteIpBlockRequest(request_id=str(uuid4()), address=ip))
    click.echo(f"{ip} is admitted again.", err=True)


def _show(change: pb.PolicyChange) -> None:
    if change.before:
        click.secho(f"- {change.path}: {change.before}", fg="red")
    if change.after:
        click.secho(f"+ {change.path}: {change.after}", fg="green")
