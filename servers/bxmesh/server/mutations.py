"""Requests that do much in many steps: a repetition goes on where it broke off, and gets the first
answer."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

from google.protobuf.message import Message
from redis.asyncio import Redis

from bxmesh.server.streams.connection import redis_errors
from bxmesh.server.streams.keys import QueueKeys

__all__ = ["Mutation"]

_LIFETIME_MS = 3_600_000

T = TypeVar("T", bound=Message)


class Mutation:
    """One request of one identity; without a request id nothing is remembered."""

    def __init__(
        self, redis: Redis, keys: QueueKeys, method: str, identity: str, request_id: str
    ) -> None:
        # Names are of any length, so their digest stands for them.
        digest = hashlib.sha256(f"{identity}\0{method}\0{request_id}".encode()).hexdigest()
        self.name = digest[:32] if request_id else ""
        """Under which steps are counted; empty when they are not."""
        self._redis = redis
        self._answer_key = f"{keys.mutation(self.name)}:answer"

    async def answered(self, answer: T) -> T | None:
        """Fills in the first answer and returns it; None when there is none yet."""
        if not self.name:
            return None
        with redis_errors():
            found: Any = await self._redis.get(self._answer_key)
        if found is None:
            return None
        answer.ParseFromString(found)
        return answer

    async def settle(self, answer: T) -> T:
        """Remembers the answer, unless there is one, and returns the one that counts."""
        if not self.name:
            return answer
        data = answer.SerializeToString()
        with redis_errors():
            await self._redis.set(self._answer_key, data, px=_LIFETIME_MS, nx=True)
            found: Any = await self._redis.get(self._answer_key)
        answer.ParseFromString(data if found is None else found)
        return answer

    async def forget(self) -> None:
        """Lets the request be as if it had never come. Raises MeshError UNAVAILABLE without Redis."""
        if self.name:
            with redis_errors():
                await self._redis.delete(self._answer_key)

    async def count(self, keys: QueueKeys) -> int:
        """How many steps were done with a queue."""
        if not self.name:
            return 0
        with redis_errors():
            found: Any = await self._redis.hget(keys.mutation(self.name), "count")
        return int(found or 0)
