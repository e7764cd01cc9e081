"""Whether the log is whole, and where it is not."""

from __future__ import annotations

import asyncio
import hmac
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from bxmesh.security.v1 import audit_pb2 as pb

from .checkpoints import Checkpoint, Checkpoints
from .entries import NO_HASH, keyed_hash

__all__ = ["Log", "Verdict", "verify"]


class Log(Protocol):
    """What is verified."""

    async def raw(self, after: int) -> list[tuple[int, bytes]]:
        """Returns the places and contents of the first entries after a place, a page at most."""

    async def head(self) -> tuple[int, bytes]:
        """Returns the place and the hash of the last entry."""


class Verdict(NamedTuple):
    """What was found."""

    entries: int
    checkpoints: int
    bad_sequence: int = 0
    """The first entry that does not fit, 0 when all do."""
    fault: pb.AuditFault.ValueType = pb.AuditFault.AUDIT_FAULT_UNSPECIFIED
    last_checkpoint: int = 0
    """The last entry under a checkpoint."""
    message: str = ""

    @property
    def intact(self) -> bool:
        """Whether every entry fits."""
        return self.bad_sequence == 0


async def verify(log: Log, checkpoints: Checkpoints, key: bytes, first: int, last: int) -> Verdict:
    """Walks through the log in pages; other tasks get their turns in between."""
    head, _ = await log.head()
    signed: dict[int, Checkpoint] = {}
    newest = 0
    for checkpoint in await checkpoints.all():
        if checkpoint is None or not checkpoints.good(checkpoint):
            place = checkpoint.sequence if checkpoint else 0
            return _bad(0, 0, max(1, place), pb.AUDIT_FAULT_CHECKPOINT, newest)
        signed[checkpoint.sequence] = checkpoint
        newest = max(newest, checkpoint.sequence)
    kept_here = await checkpoints.newest_in_file()
    if kept_here is not None and (kept_here.sequence > head or newest < kept_here.sequence):
        # The tail was cut off, and all that knew of it in Redis.
        return _bad(0, len(signed), head + 1, pb.AUDIT_FAULT_MISSING, newest)
    if kept_here is not None:
        # This one cannot have been replaced in Redis by somebody with the key.
        signed[kept_here.sequence] = kept_here

    entries = checked = 0
    expected, previous = 1, NO_HASH
    start = max(0, first - 2)
    page = await log.raw(start)
    begun = False
    while page:
        for place, data in page:
            if not begun:
                begun = True
                if place != 1:
                    anchor = signed.get(place - 1)
                    if start == 0 and anchor is None:
                        return _bad(0, checked, 1, pb.AUDIT_FAULT_MISSING, newest)
                    expected = place
                    previous = anchor.hash if anchor else b""
            if last and place > last:
                page = []
                break
            if place != expected:
                return _bad(entries, checked, expected, pb.AUDIT_FAULT_MISSING, newest)
            fault, entry_hash = _check(key, place, data, previous)
            if fault:
                return _bad(entries, checked, place, fault, newest)
            if place in signed:
                checked += 1
                if signed[place].hash != entry_hash:
                    return _bad(entries, checked, place, pb.AUDIT_FAULT_CHECKPOINT, newest)
            if place >= first:
                entries += 1
            expected, previous = place + 1, entry_hash
        if page:
            await asyncio.sleep(0)
            page = await log.raw(page[-1][0])
    reached = expected - 1
    end = min(last, head) if last else max(head, newest)
    if reached < end and not (begun is False and first > head):
        return _bad(entries, checked, expected, pb.AUDIT_FAULT_MISSING, newest)
    return Verdict(entries, checked, last_checkpoint=newest, message=f"All {entries} entries fit.")


def _check(
    key: bytes, place: int, data: bytes, previous: bytes
) -> tuple[pb.AuditFault.ValueType, bytes]:
    try:
        entry = pb.AuditEntry.FromString(data)
    except DecodeError:
        return pb.AUDIT_FAULT_UNREADABLE, b""
    if not hmac.compare_digest(entry.hash, keyed_hash(key, entry)):
        return pb.AUDIT_FAULT_HASH, b""
    if entry.sequence != place or (previous and entry.previous_hash != previous):
        return pb.AUDIT_FAULT_CHAIN, b""
    return pb.AUDIT_FAULT_UNSPECIFIED, entry.hash


_WHY = {
    pb.AUDIT_FAULT_HASH: "was changed, or made by somebody without the mesh key",
    pb.AUDIT_FAULT_CHAIN: "does not follow the entry before it",
    pb.AUDIT_FAULT_MISSING: "is missing",
    pb.AUDIT_FAULT_CHECKPOINT: "is not what a signed checkpoint says, or the checkpoint is forged",
    pb.AUDIT_FAULT_UNREADABLE: "cannot be read",
}


def _bad(
    entries: int, checkpoints: int, place: int, fault: pb.AuditFault.ValueType, newest: int
) -> Verdict:
    return Verdict(entries, checkpoints, place, fault, newest, f"Entry {place} {_WHY[fault]}.")
