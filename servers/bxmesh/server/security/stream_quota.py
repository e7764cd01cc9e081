"""How many streams an identity holds open on all servers together.

Each stream that a quota bounds has a lease in Redis, so that those of a server that is lost count
for half a minute more. Without Redis each server counts its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from redis.asyncio import Redis

from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.ending import Background
from bxmesh.server.streams.scripts import Script

from .identities import Identity
from .policy_source import PolicySource
from .quotas import most_for

__all__ = ["Stream", "StreamQuota"]

_log = logging.getLogger(__name__)

_LEASE_MS = 30_000
_RENEW_SECONDS = 10.0
_PATIENCE_SECONDS = 1.0
_LARGEST_RENEWAL = 256

_NOW = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000)"

# KEYS: streams of an identity; ARGV: lease (ms), most, stream. Returns whether it is one of them.
_ENTER = Script(f"""
{_NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
""")
# KEYS: streams of an identity; ARGV: lease (ms), stream
_RENEW = Script(f"""
{_NOW}
redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
""")
# KEYS: streams of an identity; ARGV: stream
_LEAVE = Script("redis.call('ZREM', KEYS[1], ARGV[1])")


class Stream(NamedTuple):
    """An open stream, by its name, and whose it is."""

    identity: Identity
    name: str


class StreamQuota(Background):
    """Holds identities to the streams that the policy lets them open.

    An async context manager, within which the leases of streams are renewed; streams that were open
    before a quota was count from then on.
    """

    def __init__(self, redis: Redis, policies: PolicySource) -> None:
        self._scripts = ScriptBatcher(redis)
        self._policies = policies
        self._server = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._open: dict[str, dict[str, Identity]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await asyncio.gather(*self._leaving)

    async def enter(self, identity: Identity) -> Stream:
        """Counts a stream until `leave`; raises MeshError RESOURCE_EXHAUSTED (TOO_MANY_STREAMS)."""
        stream = Stream(identity, f"{self._server}-{next(self._numbers)}")
        self._open.setdefault(identity.id, {})[stream.name] = identity
        try:
            most = self._most(identity)
            if most is not None and not await self._enter(stream, most):
                raise _too_many(identity.id, most)
        except BaseException:
            self.leave(stream)
            raise
        return stream

    def leave(self, stream: Stream) -> None:
        """Counts a stream no more."""
        own = self._open[stream.identity.id]
        del own[stream.name]
        if not own:
            del self._open[stream.identity.id]
        if self._most(stream.identity) is not None:
            task = asyncio.create_task(self._leave(stream))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _most(self, identity: Identity) -> int | None:
        return most_for(self._policies.policy, "max_open_streams", identity.id, identity.roles)

    async def _enter(self, stream: Stream, most: int) -> bool:
        identity_id, arguments = stream.identity.id, (_LEASE_MS, most, stream.name)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return bool(await self._scripts.call(_ENTER, (_key(identity_id),), arguments))
        except REDIS_ERRORS:
            return len(self._open[identity_id]) <= most

    async def _leave(self, stream: Stream) -> None:
        # Otherwise its lease ends.
        with suppress(*REDIS_ERRORS):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._scripts.call(_LEAVE, (_key(stream.identity.id),), (stream.name,))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                await self.renew()
            except REDIS_ERRORS as error:
                _log.warning("open streams are counted by each server alone: %s", error)

    async def renew(self) -> None:
        """Renews the leases of all that a quota bounds. Raises what Redis raises."""
        bounded = [
            Stream(identity, name)
            for own in self._open.values()
            for name, identity in own.items()
            if self._most(identity) is not None
        ]
        for begin in range(0, len(bounded), _LARGEST_RENEWAL):
            await asyncio.gather(
                *(
                    self._scripts.call(_RENEW, (_key(identity.id),), (_LEASE_MS, name))
                    for identity, name in bounded[begin : begin + _LARGEST_RENEWAL]
                    # What has left meanwhile must not come back.
                    if name in self._open.get(identity.id, ())
                )
            )


def _key(identity_id: str) -> str:
    return f"bxmesh:{{streams:{identity_id}}}"


def _too_many(identity_id: str, most: int) -> MeshError:
    return resource_exhausted(
        f"{identity_id} has {most} streams open already, which is all that the policy allows. "
        "Close one.",
        retry_after=1.0,
        reason="TOO_MANY_STREAMS",
        subject=f"identity:{identity_id}",
    )
