"""Who calls, how often, and by which permissions: counted in memory, kept in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from redis.asyncio import Redis

from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import Background

from .identities import Identity

__all__ = ["Calls", "Usage"]

_log = logging.getLogger(__name__)

_ROOT = "bxmesh:{security}:usage"
_LAST = f"{_ROOT}:last"
_FLUSH_SECONDS = 15.0
_HOUR_SECONDS, _DAY_SECONDS = 3600, 86400
_KEPT_SECONDS = 100 * _DAY_SECONDS
# Beyond so many different names at once somebody plays with us.
_MOST = 100_000


class Calls(NamedTuple):
    """How many calls there were, and how many of them were refused."""

    calls: int
    refused: int


class Usage(Background):
    """Counts; an async context manager, within which it writes. Methods raise what Redis raises."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._used: set[tuple[str, tuple[str, ...]]] = set()
        self._last: set[str] = set()
        self._calls = self._refused = 0

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        try:
            await self.flush()
        except (*REDIS_ERRORS, OSError) as problem:
            _log.info("the last use of credentials is not written down: %s", problem)

    def called(
        self, identity: Identity | None, permissions: tuple[str, ...], refused: bool
    ) -> None:
        """Counts a call, of None when nobody knows whose it is."""
        self._calls += 1
        if refused or identity is None:
            self._refused += 1
        elif len(self._used) < _MOST:
            self._used.add((identity.id, permissions))
            self._last.add(identity.id)
            if identity.credential.startswith("bx_"):
                self._last.add(identity.credential)

    def used(self, identity_id: str, permissions: tuple[str, ...]) -> None:
        """Counts permissions that a handler asked for besides."""
        if len(self._used) < _MOST:
            self._used.add((identity_id, permissions))

    async def last_used(self, names: Sequence[str]) -> Mapping[str, float]:
        """Returns when identities or credentials last called, to the minute, as far as they did."""
        if not names:
            return {}
        await self.flush()
        values: Any = await self._redis.hmget(_LAST, list(names))
        return {
            name: float(value)
            for name, value in zip(names, values, strict=True)
            if value and value.isdigit()
        }

    async def permissions_used(self, start: float, end: float) -> Mapping[str, frozenset[str]]:
        """Returns which permissions identities used on the days that touch a period."""
        await self.flush()
        days = range(int(start) // _DAY_SECONDS, int(end) // _DAY_SECONDS + 1)
        pipeline = self._redis.pipeline(transaction=False)
        for day in days:
            pipeline.smembers(f"{_ROOT}:day:{day}")
        used: dict[str, set[str]] = {}
        for members in await pipeline.execute():
            for member in members:
                identity_id, _, permission = member.decode(errors="replace").partition(":")
                used.setdefault(identity_id, set()).add(permission)
        return {identity_id: frozenset(names) for identity_id, names in used.items()}

    async def calls(self, start: float, end: float) -> Calls:
        """Returns the calls of the hours that touch a period."""
        await self.flush()
        pipeline = self._redis.pipeline(transaction=False)
        for hour in range(int(start) // _HOUR_SECONDS, int(end) // _HOUR_SECONDS + 1):
            pipeline.hmget(f"{_ROOT}:hour:{hour}", ["calls", "refused"])
        rows = await pipeline.execute()
        return Calls(sum(int(row[0] or 0) for row in rows), sum(int(row[1] or 0) for row in rows))

    async def flush(self) -> None:
        """Writes down what was counted."""
        used, self._used = self._used, set()
        last, self._last = self._last, set()
        calls, self._calls = self._calls, 0
        refused, self._refused = self._refused, 0
        if not calls:
            return
        now = int(time.time())
        day, hour = f"{_ROOT}:day:{now // _DAY_SECONDS}", f"{_ROOT}:hour:{now // _HOUR_SECONDS}"
        members = [f"{who}:{name}" for who, permissions in used for name in permissions]
        pipeline = self._redis.pipeline(transaction=False)
        if members:
            pipeline.sadd(day, *members)
            pipeline.expire(day, _KEPT_SECONDS)
        pipeline.hincrby(hour, "calls", calls)
        pipeline.hincrby(hour, "refused", refused)
        pipeline.expire(hour, 2 * _KEPT_SECONDS)
        if last:
            minute = now - now % 60
            pipeline.hset(_LAST, mapping={name: minute for name in last if name})
        try:
            await pipeline.execute()
        except BaseException:
            self._used |= used
            self._last |= last
            self._calls += calls
            self._refused += refused
            raise

    async def _run(self) -> None:
        away = False
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush()
                away = False
            except (*REDIS_ERRORS, OSError) as error:
                if not away:
                    _log.info("the use of credentials is not written down: %s", error)
                away = True
