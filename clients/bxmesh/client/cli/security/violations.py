"""`bxmesh security violations`: what was refused."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click
from google.protobuf import json_format

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.paging import all_pages, day
from bxmesh.client.cli.tables import show
from bxmesh.client.cli.values import MOMENT, as_json, print_json
from bxmesh.client.names import EnumNames
from bxmesh.security.v1 import violation_pb2 as pb

__all__ = ["KINDS", "violations"]

KINDS = EnumNames(pb.ViolationKind, "VIOLATION_KIND_")
"""Kinds of violations as people write them."""
_SEVERITIES = EnumNames(pb.Severity, "SEVERITY_")
_LEVELS = ("low", "medium", "high", "critical")

_kinds = click.option("--kind", "kinds", multiple=True, help="Of this kind; repeatable.")
_severity = click.option("--severity", type=click.Choice(_LEVELS), help="At least so severe.")
_identity = click.option("--identity", "identity_id", default="", help="By this identity.")
_address = click.option("--from", "peer", default="", help="From this address.")


@click.group()
def violations() -> None:
    """See and follow what was refused."""


@violations.command("list")
@_kinds
@_severity
@_identity
@_address
@click.option("--since", "start_time", type=MOMENT, help="A time, or 15m ago.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@as_json
@connecting
def list_violations(
    where: Where, as_json: bool, limit: int, start_time: datetime | None, **wanted: Any
) -> None:
    """List violations, newest first."""
    request = pb.ListViolationsRequest(filter=_filter(**wanted))
    if start_time is not None:
        request.filter.start_time.FromDatetime(start_time)
    found: list[pb.Violation] = []
    with tracing("security violations list"), where.connect() as mesh:
        for page in all_pages(mesh, request):
            found += page.violations
            if len(found) >= limit:
                break
    if as_json:
        print_json([_plain(violation) for violation in found[:limit]])
        return
    show(
        ("when", "kind", "severity", "identity", "from", "times", "message"),
        [
            (
                day(violation, "event_time"),
                KINDS.name(violation.kind),
                _SEVERITIES.name(violation.severity),
                violation.identity_id or "-",
                violation.address or "-",
                str(violation.count),
                violation.message,
            )
            for violation in found[:limit]
        ],
    )


@violations.command("watch")
@_kinds
@_severity
@_identity
@_address
@as_json
@connecting
def watch_violations(where: Where, as_json: bool, **wanted: Any) -> None:
    """Print violations as they happen, until you interrupt it."""
    request = pb.WatchViolationsRequest(filter=_filter(**wanted))
    with tracing("security violations watch"), where.connect() as mesh:
        for answer in mesh.security.stream(request):
            for violation in answer.violations:
                click.echo(json.dumps(_plain(violation)) if as_json else _line(violation))


def _filter(
    kinds: tuple[str, ...], severity: str | None, identity_id: str, peer: str
) -> pb.ViolationFilter:
    return pb.ViolationFilter(
        kinds=[KINDS.number(kind) for kind in kinds],
        min_severity=_SEVERITIES.number(severity),
        identity_id=identity_id,
        address=peer,
    )


def _line(violation: pb.Violation) -> str:
    times = f" ({violation.count} times)" if violation.count > 1 else ""
    return (
        f"{day(violation, 'event_time')}  {KINDS.name(violation.kind):15} "
        f"{violation.identity_id or '-':14} {violation.address or '-':15} {violation.message}{times}"
    )


def _plain(violation: pb.Violation) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(violation, preserving_proto_field_name=True)
    return plain
