"""Seals on work items: whoever can write to Redis but has not the mesh key makes no work."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from bxmesh.server.security.mesh_key import load_or_create
from bxmesh.work.v1 import work_pb2

__all__ = ["UNSEALED", "Seals", "seals_of"]


class Seals:
    """Seals items for a queue (HMAC-SHA256 over its name and the item), and knows good seals.

    An entry that is copied within its queue keeps its seal: items have unique names and their ends
    are remembered, so that it is done at least once, as any other is.
    """

    __slots__ = ("_key", "on_forged")

    def __init__(self, key: bytes | None) -> None:
        """Takes the key, None to seal nothing and to trust everybody."""
        self._key = key
        self.on_forged: Callable[[str], None] = lambda stream: None
        """Is told of each forged entry: the stream that holds it."""

    def __repr__(self) -> str:
        return f"Seals({'…' if self._key else None})"

    @property
    def sealing(self) -> bool:
        """Whether there is a key."""
        return self._key is not None

    def entry(self, queue: str, item: work_pb2.WorkItem) -> work_pb2.WorkEntry:
        """Returns a new, sealed entry for an item."""
        return work_pb2.WorkEntry(item=item, seal=self._seal(queue, item))

    def holds(self, queue: str, entry: work_pb2.WorkEntry) -> bool:
        """Whether an entry was made for a queue by somebody with the key."""
        return self._key is None or hmac.compare_digest(entry.seal, self._seal(queue, entry.item))

    def _seal(self, queue: str, item: work_pb2.WorkItem) -> bytes:
        if self._key is None:
            return b""
        content = item.SerializeToString(deterministic=True)
        return hmac.digest(self._key, queue.encode() + b"\0" + content, "sha256")


UNSEALED = Seals(None)
"""Where everybody who can write to Redis is trusted."""


@lru_cache(maxsize=16)
def seals_of(mesh_key_path: Path) -> Seals:
    """Returns the seals of a mesh by the file of its key; raises what `load_or_create` raises."""
    return Seals(load_or_create(mesh_key_path).derive("bxmesh work items"))
