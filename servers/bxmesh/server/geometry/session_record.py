"""What the mesh remembers of a session, in Redis, so that any server and worker can take it up again."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from bxmesh.geometry.v1 import geometry_work_pb2
from bxmesh.server.streams.connection import redis_errors


def _key(session_id: str) -> str:
    return f"bxmesh:{{session:{session_id}}}:record"


class SessionRecords:
    """The records of sessions; each is forgotten some time after its last use.

    Methods raise MeshError UNAVAILABLE while Redis is away.
    """

    def __init__(self, redis: Redis, idle_seconds: float) -> None:
        self._redis = redis
        self.idle_seconds = idle_seconds

    async def save(self, session_id: str, record: geometry_work_pb2.SessionRecord) -> None:
        """Writes a record."""
        lifetime = int(self.idle_seconds * 1000)
        with redis_errors():
            await self._redis.set(_key(session_id), record.SerializeToString(), px=lifetime)

    async def load(self, session_id: str) -> geometry_work_pb2.SessionRecord | None:
        """Reads a record; None when there is none, or no longer."""
        with redis_errors():
            data: Any = await self._redis.get(_key(session_id))
        return None if data is None else geometry_work_pb2.SessionRecord.FromString(data)

    async def touch(self, session_id: str) -> None:
        """Says that a session is in use."""
        with redis_errors():
            await self._redis.pexpire(_key(session_id), int(self.idle_seconds * 1000))

    async def forget(self, session_id: str) -> None:
        """Removes a record."""
        with redis_errors():
            await self._redis.delete(_key(session_id))
