"""`bxmesh security report`: a period summed up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import click
from google.protobuf import json_format

from bxmesh.client.cli.connecting import Where, connecting, tracing
from bxmesh.client.cli.security.durations import DURATION
from bxmesh.client.cli.security.paging import day
from bxmesh.client.cli.security.violations import KINDS
from bxmesh.client.cli.tables import facts, show
from bxmesh.client.cli.values import as_json, print_json
from bxmesh.security.v1 import violation_pb2 as pb

__all__ = ["report"]

_BAR = 30


@click.command()
@click.argument("identity_id", default="")
@click.option("--period", type=DURATION, help="How far back: 12h, 7d; a day.")
@as_json
@connecting
def report(where: Where, identity_id: str, period: timedelta | None, as_json: bool) -> None:
    """Sum up a period, of everyone or of one: violations, expiring keys, unused rights."""
    request = pb.GetSecurityReportRequest(identity_id=identity_id)
    if period is not None:
        request.period.FromTimedelta(period)
    with tracing("security report"), where.connect() as mesh:
        answer = mesh.security.call(request)
    if as_json:
        print_json(json_format.MessageToDict(answer, preserving_proto_field_name=True))
        return
    calls = f"{answer.calls:,}, of which {answer.refused_calls:,} refused"
    facts(
        (
            ("period", f"{day(answer, 'start_time')} to {day(answer, 'end_time')}"),
            ("calls", "" if identity_id else calls),
            ("blocked", _counted(answer.blocked_addresses, "address", "addresses")),
            (
                "circuits",
                ", ".join(answer.open_circuits) and f"open: {', '.join(answer.open_circuits)}",
            ),
        )
    )
    click.echo()
    if answer.violations:
        _show_violations(answer.violations)
    else:
        click.echo("No violations.")
    rows = [
        (
            one.identity_id,
            str(sum(count.count for count in one.violations) or ""),
            day(one, "last_used_time") or "never",
            ", ".join(one.expiring_key_ids),
            ", ".join(one.unused_permissions),
        )
        for one in answer.identities
    ]
    if rows:
        click.echo()
        show(("identity", "violations", "last call", "keys that end soon", "unused rights"), rows)


def _show_violations(counts: Sequence[pb.ViolationCount]) -> None:
    most = max(count.count for count in counts)
    show(
        ("violations", "count", "", "before", "last"),
        [
            (
                KINDS.name(count.kind),
                f"{count.count:,}",
                "█" * max(1, round(_BAR * count.count / most)),
                f"{_trend(count)} {count.previous_count:,}",
                day(count, "last_time"),
            )
            for count in sorted(counts, key=lambda count: -count.count)
        ],
    )


def _trend(count: pb.ViolationCount) -> str:
    if count.count == count.previous_count:
        return "→"
    return "↑" if count.count > count.previous_count else "↓"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many} refused for a while" if number else ""
