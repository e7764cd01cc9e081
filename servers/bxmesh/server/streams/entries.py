"""What a worker holds: an entry of a stream, read with suspicion."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from bxmesh.server.errors import MeshError, internal, permission_denied
from bxmesh.server.streams.keys import DELIVERIES, ENTRY, MOVED
from bxmesh.server.streams.seals import Seals
from bxmesh.work.v1 import work_pb2

_log = logging.getLogger(__name__)

# No count in an honest entry is larger.
_MOST_ATTEMPTS = 1_000_000


@dataclass(slots=True, eq=False)
class HeldEntry:
    """An entry under a worker's lease."""

    stream: str
    entry_id: bytes
    data: bytes
    """The entry as it was found."""
    entry: work_pb2.WorkEntry = field(default_factory=work_pb2.WorkEntry)
    """Empty when it could not be read."""
    attempt: int = 1
    """Which attempt at the item this is, from 1."""
    moved: bool = False
    """Whether it is elsewhere than its ticket says, so that it may have been cancelled unseen."""
    problem: MeshError | None = None
    """Why it could not be read."""
    over: bool = False
    """Whether it makes no sense to work on: taken back, too late, or the lease is lost."""
    task: asyncio.Task[None] | None = None
    in_handler: bool = False

    @property
    def key(self) -> tuple[str, bytes]:
        """Entry ids are unique within a stream only."""
        return self.stream, self.entry_id

    @property
    def item(self) -> work_pb2.WorkItem:
        """The item."""
        return self.entry.item

    def interrupt(self) -> None:
        """Stops the handler; settling goes on."""
        self.over = True
        if self.in_handler and self.task is not None:
            self.task.cancel()


def read_entry(
    queue: str, seals: Seals, stream: str, entry_id: bytes, fields: Mapping[bytes, bytes]
) -> HeldEntry:
    """Reads what a stream of a queue holds; anybody may have written it."""
    data = fields.get(ENTRY)
    if data is None:
        found = b"\n".join(name + b"=" + value for name, value in fields.items())
        return _unreadable(stream, entry_id, found, "it has no content")
    try:
        entry = work_pb2.WorkEntry.FromString(data)
    except DecodeError:
        return _unreadable(stream, entry_id, data, "it is not a WorkEntry")
    if not seals.holds(queue, entry):
        _log.error("%s holds a forged entry, %s", stream, entry_id.decode(errors="replace"))
        seals.on_forged(stream)
        problem = permission_denied(
            "The entry was made, or changed, by somebody without the mesh key.",
            reason="FORGED_ENTRY",
        )
        return HeldEntry(stream, entry_id, data, problem=problem)
    try:
        deliveries = int(fields.get(DELIVERIES, b"0"))
    except ValueError:
        return _unreadable(stream, entry_id, data, "its deliveries are not a number")
    if not entry.item.item_id:
        return _unreadable(stream, entry_id, data, "its item has no id")
    if entry.item.max_attempts < 1:
        return _unreadable(stream, entry_id, data, "its item allows no attempt")
    if not (0 <= deliveries <= _MOST_ATTEMPTS and 0 <= entry.attempts <= _MOST_ATTEMPTS):
        return _unreadable(stream, entry_id, data, "its attempts are out of range")
    attempt = entry.attempts + deliveries + 1
    return HeldEntry(stream, entry_id, data, entry, attempt, moved=MOVED in fields)


def _unreadable(stream: str, entry_id: bytes, data: bytes, why: str) -> HeldEntry:
    problem = internal(f"The entry is not a work item: {why}.", reason="UNREADABLE")
    return HeldEntry(stream, entry_id, data, problem=problem)
