"""`bxmesh security audit`: the audit log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.paging import day
from bxmesh.client.cli.tables import facts
from bxmesh.client.cli.values import MOMENT, as_json
from bxmesh.client.sync import Mesh
from bxmesh.security.v1 import audit_pb2 as pb

__all__ = ["audit"]


@click.group()
def audit() -> None:
    """Read, check and export the audit log."""


@audit.command("list")
@click.option("--type", "event_types", multiple=True, help="Such as login.failed or api_key.*")
@click.option("--identity", "identity_id", default="", help="Done by this identity.")
@click.option("--resource", "resource_prefix", default="", help="Done to what begins so.")
@click.option("--since", "start_time", type=MOMENT, help="A time, or 15m ago.")
@click.option("--until", "end_time", type=MOMENT, help="Before this time.")
@click.option("--after", "after_sequence", type=click.IntRange(min=0), default=0, metavar="N")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--follow", is_flag=True, help="Go on with new entries as they come.")
@as_json
@connecting
def list_entries(where: Where, as_json: bool, limit: int | None, **wanted: Any) -> None:
    """Print entries in order; with --json as JSON Lines."""
    times = {name: wanted.pop(name) for name in ("start_time", "end_time")}
    request = pb.QueryAuditLogRequest(limit=limit or 0, **wanted)
    _set_times(request, **times)
    with tracing("security audit list"), where.connect() as mesh:
        for entry in _entries(mesh, request):
            click.echo(json.dumps(_plain(entry)) if as_json else _line(entry))


@audit.command("verify")
@click.option("--first", "first_sequence", type=click.IntRange(min=0), default=0, metavar="N")
@click.option("--last", "last_sequence", type=click.IntRange(min=0), default=0, metavar="N")
@connecting
def verify(where: Where, first_sequence: int, last_sequence: int) -> None:
    """Check that no entry was changed, left out or slipped in; exits with 1 if one was."""
    request = pb.VerifyAuditLogRequest(first_sequence=first_sequence, last_sequence=last_sequence)
    with tracing("security audit verify"), where.connect() as mesh:
        verdict = mesh.security.call(request)
    facts(
        (
            ("verdict", verdict.message),
            ("entries", f"{verdict.entries_checked:,}"),
            ("checkpoints", f"{verdict.checkpoints_checked:,}"),
            ("signed up to", str(verdict.last_checkpoint_sequence)),
        )
    )
    if not verdict.intact:
        sys.exit(1)


@audit.command("export")
@click.argument("file", type=click.File("w"), default="-")
@click.option("--after", "after_sequence", type=click.IntRange(min=0), default=0, metavar="N")
@connecting
def export(where: Where, file: Any, after_sequence: int) -> None:
    """Write all entries with their hashes as JSON Lines to a file, or to stdout."""
    request = pb.QueryAuditLogRequest(after_sequence=after_sequence)
    count, watched = 0, sys.stderr.isatty() and file is not sys.stdout
    with tracing("security audit export"), where.connect() as mesh:
        for entry in _entries(mesh, request):
            file.write(json.dumps(_plain(entry)) + "\n")
            count += 1
            if watched and count % 1000 == 0:
                click.echo(f"\r{count:,} entries", nl=False, err=True)
    start = "\r" if watched else ""
    click.echo(f"{start}{count:,} entries are written.", err=True)


def _entries(mesh: Mesh, request: pb.QueryAuditLogRequest) -> Iterator[pb.AuditEntry]:
    for answer in mesh.security.stream(request):
        yield from answer.entries


def _set_times(
    request: pb.QueryAuditLogRequest, start_time: datetime | None, end_time: datetime | None
) -> None:
    if start_time is not None:
        request.start_time.FromDatetime(start_time)
    if end_time is not None:
        request.end_time.FromDatetime(end_time)


def _line(entry: pb.AuditEntry) -> str:
    details = " ".join(f"{name}={value}" for name, value in sorted(entry.details.items()) if value)
    parts = (
        f"{entry.sequence:>6}  {day(entry, 'event_time')}  {entry.event_type:22}",
        f"{entry.outcome:17}",
        f"{entry.identity_id or '-':14}",
        entry.address,
        entry.resource or entry.method,
        details,
    )
    return "  ".join(part for part in parts if part)


def _plain(entry: pb.AuditEntry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "event_time": entry.event_time.ToJsonString(),
        "event_type": entry.event_type,
        "identity_id": entry.identity_id,
        "address": entry.address,
        "method": entry.method,
        "resource": entry.resource,
        "outcome": entry.outcome,
        "details": dict(sorted(entry.details.items())),
        "trace_id": entry.trace_id,
        "previous_hash": entry.previous_hash.hex(),
        "hash": entry.hash.hex(),
    }
