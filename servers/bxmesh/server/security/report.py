"""What a period was like: violations, use, and what to look after."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

from bxmesh.security.v1 import violation_pb2 as pb

from .mesh import SecurityMesh
from .violations import Counted

__all__ = ["security_report"]

_DAY_SECONDS = 86400
_EXPIRING_SECONDS = 14 * _DAY_SECONDS
_HOUR_SECONDS = 3600
_MOST_IDENTITIES = 1000


async def security_report(
    mesh: SecurityMesh, request: pb.GetSecurityReportRequest
) -> pb.GetSecurityReportResponse:
    """Returns the overview of a period, of everyone or of one. Raises what Redis raises.

    Violations and calls are counted by the hour: the hours at the ends count whole.
    """
    now = time.time()
    period = request.period.seconds if request.HasField("period") else _DAY_SECONDS
    start = now - period
    counts = await mesh.violations.counts(start - period, now)
    if request.identity_id:
        counts = [count for count in counts if count.identity_id == request.identity_id]
    calls = await mesh.usage.calls(start, now)
    answer = pb.GetSecurityReportResponse(
        violations=_by_kind(counts, start),
        identities=await _identities(mesh, request.identity_id, counts, start, now),
    )
    answer.start_time.FromSeconds(int(start))
    answer.end_time.FromSeconds(int(now))
    if not request.identity_id:
        answer.calls, answer.refused_calls = calls
        answer.blocked_addresses = len(mesh.addresses.blocks())
        answer.open_circuits.extend(await mesh.open_circuits())
    return answer


async def _identities(
    mesh: SecurityMesh, only: str, counts: Iterable[Counted], start: float, now: float
) -> list[pb.IdentityReport]:
    by_identity: defaultdict[str, list[Counted]] = defaultdict(list)
    for count in counts:
        by_identity[count.identity_id].append(count)
    by_identity.pop("", None)
    directory = mesh.directory
    names = [only] if only else [*(record.identity_id for record in directory.identities())]
    names = list(dict.fromkeys([*names, *(() if only else by_identity)]))
    used = await mesh.usage.permissions_used(start, now)
    last = await mesh.usage.last_used(names)
    expiring: defaultdict[str, list[str]] = defaultdict(list)
    for stored in directory.all_keys():
        if now < stored.ends <= now + _EXPIRING_SECONDS:
            expiring[stored.key.identity_id].append(stored.key.key_id)
    reports = []
    for name in names:
        unused = directory.permissions_of(name) - used.get(name, frozenset())
        report = pb.IdentityReport(
            identity_id=name,
            violations=_by_kind(by_identity[name], start),
            expiring_key_ids=expiring[name],
            unused_permissions=sorted(unused),
        )
        if moment := last.get(name):
            report.last_used_time.FromSeconds(int(moment))
        if only or report.violations or report.expiring_key_ids or report.unused_permissions:
            reports.append(report)
    reports.sort(key=lambda report: -sum(count.count for count in report.violations))
    return reports[:_MOST_IDENTITIES]


def _by_kind(counts: Iterable[Counted], start: float) -> list[pb.ViolationCount]:
    first = int(start) // _HOUR_SECONDS
    found: dict[pb.ViolationKind.ValueType, pb.ViolationCount] = {}
    for count in counts:
        kind = found.setdefault(count.kind, pb.ViolationCount(kind=count.kind))
        if count.hour >= first:
            kind.count += count.times
        else:
            kind.previous_count += count.times
        moment = count.hour * _HOUR_SECONDS
        if moment > kind.last_time.seconds:
            kind.last_time.FromSeconds(moment)
    return [found[kind] for kind in sorted(found) if found[kind].count]
