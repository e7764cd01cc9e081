"""Why work was stopped from outside: kept for whoever finds that its worker has vanished."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from redis.asyncio import Redis

from bxmesh.server.errors import MeshError
from bxmesh.server.streams.keys import QueueKeys

__all__ = ["note_stopped", "why_stopped"]

_SECONDS = 86400


async def note_stopped(redis: Redis, keys: QueueKeys, item_id: str, error: MeshError) -> None:
    """Notes it, before the worker goes. Raises what Redis raises."""
    await redis.set(keys.stopped(item_id), error.to_status().SerializeToString(), ex=_SECONDS)


async def why_stopped(redis: Redis, keys: QueueKeys, item_id: str) -> MeshError | None:
    """Returns why the last worker at an item was stopped; None when it was not. Raises likewise."""
    found: Any = await redis.get(keys.stopped(item_id))
    try:
        return None if found is None else MeshError.from_status(status_pb2.Status.FromString(found))
    except DecodeError:
        return None
