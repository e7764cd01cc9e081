"""The RPCs on the audit log."""

from __future__ import annotations

from collections.abc import Iterable

from bxmesh.security.v1 import audit_pb2 as pb
from bxmesh.server.open_streams import OpenStreams
from bxmesh.server.streams.connection import redis_errors

from .mesh import SecurityMesh
from .mutations import Context

__all__ = ["AuditRpcs"]

_WAIT_MS = 1_000


class AuditRpcs:
    """QueryAuditLog and VerifyAuditLog."""

    _mesh: SecurityMesh
    _streams: OpenStreams

    async def QueryAuditLog(self, request: pb.QueryAuditLogRequest, context: Context) -> None:
        """Streams the entries that fit, in order."""
        after, left = request.after_sequence, request.limit or None
        log = self._mesh.audit_log
        async with self._streams.stream():
            while True:
                with redis_errors():
                    async for last, entries in log.read(after):
                        found = [entry for entry in entries if _fits(entry, request)]
                        if left is not None:
                            found = found[:left]
                            left -= len(found)
                        after = found[-1].sequence if left == 0 and found else last
                        if found or not request.follow:
                            await context.write(
                                pb.QueryAuditLogResponse(entries=found, sequence=after)
                            )
                        if left == 0:
                            return
                    if not request.follow:
                        return
                    await log.wait(after, _WAIT_MS)

    async def VerifyAuditLog(
        self, request: pb.VerifyAuditLogRequest, context: Context
    ) -> pb.VerifyAuditLogResponse:
        """Checks the chain and its checkpoints."""
        with redis_errors():
            verdict = await self._mesh.audit_log.verify(
                request.first_sequence, request.last_sequence
            )
        return pb.VerifyAuditLogResponse(
            intact=verdict.intact,
            entries_checked=verdict.entries,
            checkpoints_checked=verdict.checkpoints,
            first_bad_sequence=verdict.bad_sequence,
            fault=verdict.fault,
            last_checkpoint_sequence=verdict.last_checkpoint,
            message=verdict.message,
        )


def _fits(entry: pb.AuditEntry, wanted: pb.QueryAuditLogRequest) -> bool:
    if wanted.identity_id and entry.identity_id != wanted.identity_id:
        return False
    if not entry.resource.startswith(wanted.resource_prefix):
        return False
    moment = entry.event_time.ToNanoseconds()
    if wanted.HasField("start_time") and moment < wanted.start_time.ToNanoseconds():
        return False
    if wanted.HasField("end_time") and moment >= wanted.end_time.ToNanoseconds():
        return False
    return not wanted.event_types or _is_one_of(entry.event_type, wanted.event_types)


def _is_one_of(event_type: str, wanted: Iterable[str]) -> bool:
    return any(
        event_type.startswith(name[:-1]) if name.endswith("*") else event_type == name
        for name in wanted
    )
