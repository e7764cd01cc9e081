"""Violations: what was refused or recorded, kept for a while and counted."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis

from bxmesh.security.v1 import violation_pb2 as pb
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.scripts import Script

from .events import ViolationEvent
from .mesh_key import MeshKey

__all__ = ["Counted", "StampedViolation", "Violations", "fits"]

_ROOT = "bxmesh:{security}:violations"
_REVISION = f"{_ROOT}:revision"
_MOST = 100_000
_LONGEST = 256
_SEAL_BYTES = 32
_BUCKET_SECONDS = 3600
# The longest period of a report, and the one before it.
_COUNTED_SECONDS = 2 * 90 * 86400

# KEYS: stream, revision, counts by bucket
# ARGV: most entries, for how long counts live (s), then for each violation: first revision that it
# was sealed for, sealed violation, field of its count, count. Returns the present revision, or -1
# and it when others were faster.
_ADD = Script("""
local revision = tonumber(redis.call('GET', KEYS[2]) or 0)
if (#ARGV > 2) and tonumber(ARGV[3]) ~= revision + 1 then return {-1, revision} end
for i = 3, #ARGV, 4 do
  revision = redis.call('INCR', KEYS[2])
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], revision .. '-0', 'violation', ARGV[i + 1])
  redis.call('HINCRBY', KEYS[3], ARGV[i + 2], ARGV[i + 3])
end
redis.call('EXPIRE', KEYS[3], ARGV[2])
return {0, revision}
""")


@dataclass(frozen=True, slots=True)
class StampedViolation:
    """A violation with what is known of its moment, and how many alike it stands for."""

    event: ViolationEvent
    time: Timestamp
    trace_id: str = ""
    count: int = 1


class Counted(NamedTuple):
    """How many violations of a kind an identity had in an hour."""

    hour: int
    """In hours since 1970."""
    kind: pb.ViolationKind.ValueType
    identity_id: str
    times: int


class Violations:
    """The store. Methods raise what Redis raises. A forged violation is left out."""

    def __init__(self, redis: Redis, key: MeshKey) -> None:
        self._redis = redis
        self._key = key.derive("bxmesh violations")
        self._scripts = ScriptBatcher(redis)

    async def add(self, violations: Sequence[StampedViolation]) -> None:
        """Enters violations in order."""
        revision = await self.revision()
        left = list(violations)
        while left:
            # All of a call go into the bucket of one hour.
            hour = left[0].time.seconds // _BUCKET_SECONDS
            batch = [each for each in left[:200] if each.time.seconds // _BUCKET_SECONDS == hour]
            arguments: list[str | bytes | int] = [_MOST, _COUNTED_SECONDS]
            for number, stamped in enumerate(batch, revision + 1):
                event = stamped.event
                arguments += [
                    number,
                    self._sealed(_message(stamped, number)),
                    f"{event.kind}:{event.identity_id}"[:_LONGEST],
                    stamped.count,
                ]
            done, revision = await self._scripts.call(
                _ADD, (_ROOT, _REVISION, f"{_ROOT}:hour:{hour}"), arguments
            )
            if done == 0:
                taken = set(map(id, batch))
                left = [each for each in left if id(each) not in taken]

    async def revision(self) -> int:
        """Returns the revision of the newest, 0 before the first."""
        return int(await self._redis.get(_REVISION) or 0)

    async def before(self, revision: int, most: int) -> tuple[list[pb.Violation], int]:
        """Returns those before a revision, newest first, and where the next page begins, 0 for
        none; a forged one is left out."""
        found: Any = await self._redis.xrevrange(
            _ROOT, max=f"({revision}-0" if revision else "+", count=most
        )
        last = _place(found[-1][0]) if len(found) == most else 0
        return self._read(found), last

    async def after(self, revision: int, most: int) -> tuple[list[pb.Violation], int] | None:
        """Returns those after a revision, and up to where that is; None when some are not kept."""
        oldest: Any = await self._redis.xrange(_ROOT, count=1)
        latest = await self.revision()
        if revision > latest or (
            revision < latest and (not oldest or _place(oldest[0][0]) > revision + 1)
        ):
            return None
        found: Any = await self._redis.xrange(_ROOT, min=f"({revision}-0", count=most)
        return self._read(found), _place(found[-1][0]) if found else revision

    async def wait(self, revision: int, milliseconds: int) -> None:
        """Returns when there is one after a revision, or after a time."""
        await self._redis.xread({_ROOT: f"{revision}-0"}, count=1, block=milliseconds)

    async def counts(self, start: float, end: float) -> list[Counted]:
        """Returns the counts of the hours that touch a period, in seconds since 1970."""
        first, last = int(start) // _BUCKET_SECONDS, int(end) // _BUCKET_SECONDS
        counted = []
        for begin in range(first, last + 1, 256):
            pipeline = self._redis.pipeline(transaction=False)
            hours = range(begin, min(begin + 256, last + 1))
            for hour in hours:
                pipeline.hgetall(f"{_ROOT}:hour:{hour}")
            answers: list[Mapping[bytes, bytes]] = await pipeline.execute()
            for hour, answer in zip(hours, answers, strict=True):
                for field, count in answer.items():
                    kind, _, identity_id = field.decode(errors="replace").partition(":")
                    if kind.isdigit() and count.isdigit():
                        counted.append(
                            Counted(
                                hour,
                                pb.ViolationKind.ValueType(int(kind)),
                                identity_id,
                                int(count),
                            )
                        )
        return counted

    def _sealed(self, violation: pb.Violation) -> bytes:
        data = violation.SerializeToString()
        return hmac.digest(self._key, data, "sha256") + data

    def _read(self, found: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[pb.Violation]:
        read = []
        for entry_id, fields in found:
            sealed = fields.get(b"violation", b"")
            seal, data = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
            if not hmac.compare_digest(seal, hmac.digest(self._key, data, "sha256")):
                continue
            try:
                violation = pb.Violation.FromString(data)
            except DecodeError:
                continue
            # One that was copied to another place is forged too.
            if violation.revision == _place(entry_id):
                read.append(violation)
        return read


def fits(violation: pb.Violation, wanted: pb.ViolationFilter) -> bool:
    """Returns whether all holds that is set in a filter."""
    moment = violation.event_time.ToNanoseconds()
    return (
        (not wanted.kinds or violation.kind in wanted.kinds)
        and violation.severity >= wanted.min_severity
        and wanted.identity_id in ("", violation.identity_id)
        and wanted.address in ("", violation.address)
        and not (wanted.HasField("start_time") and moment < wanted.start_time.ToNanoseconds())
        and not (wanted.HasField("end_time") and moment >= wanted.end_time.ToNanoseconds())
    )


def _message(stamped: StampedViolation, revision: int) -> pb.Violation:
    event = stamped.event
    return pb.Violation(
        violation_id=f"{int(time.time()):x}-{secrets.token_hex(8)}",
        kind=event.kind,
        severity=event.severity,
        identity_id=_cut(event.identity_id),
        address=_cut(event.address),
        action=_cut(event.action),
        resource=_cut(event.resource),
        rule=_cut(event.rule),
        message=_cut(event.message),
        event_time=stamped.time,
        trace_id=stamped.trace_id,
        count=stamped.count,
        revision=revision,
    )


def _place(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def _cut(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + "…"
