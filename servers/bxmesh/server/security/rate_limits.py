"""Rate limits: token buckets in Redis, of which servers take some tokens at a time.

A server that has tokens of a bucket asks nobody; it never has more than the bucket gave. So all
servers together let through no more than burst + rate x time, and less at most by what each of them
holds unused: a tenth of a second's worth, and none of a bucket below ten calls a second. Without
Redis calls are let through: nothing else works then, and credentials are refused after 5 s.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple

from redis.asyncio import Redis

from bxmesh.security.v1 import policy_pb2 as pb
from bxmesh.server.errors import MeshError, resource_exhausted
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.scripts import Script

from .identities import Identity
from .patterns import Matcher, matcher
from .policies import Policies

__all__ = ["RateLimiter"]

_LEASE_SECONDS = 0.1
# Unused tokens are worth nothing after so long: the bucket has filled again meanwhile.
_STALE_SECONDS = 1.0
_MOST_BUCKETS = 10_000

# KEYS: bucket; ARGV: rate, burst, tokens that are wanted
# Returns {tokens that were given, microseconds until there is one}.
_TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local known = redis.call('HMGET', KEYS[1], 'tokens', 'time')
local tokens = math.min(burst, (tonumber(known[1]) or burst)
  + math.max(0, now - (tonumber(known[2]) or now)) * rate / 1000000)
local given = math.floor(math.min(wanted, tokens))
tokens = tokens - given
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'time', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * burst / rate) + 1000)
return {given, given > 0 and 0 or math.ceil((1 - tokens) * 1000000 / rate)}
""")


class _Limit(NamedTuple):
    rule: pb.RateLimit
    methods: Matcher | None
    identities: frozenset[str]
    wanted: int

    @classmethod
    def of(cls, rule: pb.RateLimit) -> _Limit:
        wanted = max(1, min(rule.burst, int(rule.rate * _LEASE_SECONDS)))
        return cls(rule, matcher(rule.methods), frozenset(rule.identities), wanted)

    def concerns(self, identity: Identity, address: str) -> bool:
        if self.rule.scope == pb.RATE_LIMIT_SCOPE_IP and not address:
            return False
        return (
            not self.identities
            or identity.id in self.identities
            or not self.identities.isdisjoint(identity.roles)
        )

    def subject(self, identity: Identity, method: str, address: str) -> str:
        match self.rule.scope:
            case pb.RATE_LIMIT_SCOPE_METHOD:
                return method
            case pb.RATE_LIMIT_SCOPE_IP:
                return address
            case pb.RATE_LIMIT_SCOPE_IDENTITY_AND_METHOD:
                return f"{identity.id} {method}"
        return identity.id


class _Bucket:
    """What this server holds of a bucket."""

    __slots__ = ("empty_until", "refill", "tokens", "until")

    def __init__(self) -> None:
        self.tokens = 0
        self.until = 0.0
        self.empty_until = 0.0
        self.refill: asyncio.Task[None] | None = None


class RateLimiter:
    """Counts calls against the limits of the policy."""

    def __init__(self, redis: Redis, policies: Policies) -> None:
        self._scripts = ScriptBatcher(redis)
        self._policies = policies
        self._limits: tuple[_Limit, ...] = ()
        self._of_method: dict[str, tuple[_Limit, ...]] = {}
        self._of_key: dict[str, _Limit] = {}
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        policies.on_change(self._read)
        self._read()

    def _read(self) -> None:
        self._limits = tuple(map(_Limit.of, self._policies.policy.rate_limits))
        self._of_method.clear()

    async def count(self, identity: Identity, method: str, address: str) -> None:
        """Counts a call; raises MeshError RESOURCE_EXHAUSTED (RATE_LIMITED) over a limit."""
        for limit in self._concerning(identity, method):
            if limit.concerns(identity, address):
                await self._take(limit, limit.subject(identity, method, address))

    def _concerning(self, identity: Identity, method: str) -> tuple[_Limit, ...]:
        limits = self._of_method.get(method)
        if limits is None:
            limits = self._of_method[method] = tuple(
                limit
                for limit in self._limits
                if limit.methods is None or limit.methods.fullmatch(method)
            )
        if identity.rate_limit is None:
            return limits
        # The key's own limit takes the place of those of its identity.
        own = self._of_key.get(identity.credential)
        if own is None or own.rule != identity.rate_limit:
            if len(self._of_key) >= _MOST_BUCKETS:
                self._of_key.clear()
            rule = pb.RateLimit()
            rule.CopyFrom(identity.rate_limit)
            rule.name = f"key {identity.credential}"
            own = self._of_key[identity.credential] = _Limit.of(rule)
        others = tuple(
            limit
            for limit in limits
            if limit.rule.scope in (pb.RATE_LIMIT_SCOPE_METHOD, pb.RATE_LIMIT_SCOPE_IP)
        )
        if own.methods is None or own.methods.fullmatch(method):
            return (own, *others)
        return others

    async def _take(self, limit: _Limit, subject: str) -> None:
        name = f"bxmesh:{{limit:{limit.rule.name}:{subject}}}"
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket()
            if len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
        now = time.monotonic()
        if bucket.until <= now:
            bucket.tokens = 0
        while bucket.tokens < 1:
            if time.monotonic() < bucket.empty_until:
                raise _exceeded(limit.rule, bucket.empty_until - time.monotonic())
            if bucket.refill is None or bucket.refill.done():
                bucket.refill = asyncio.create_task(self._refill(name, limit, bucket))
            # Shielded: others wait for the same tokens.
            try:
                await asyncio.shield(bucket.refill)
            except REDIS_ERRORS:
                return
        bucket.tokens -= 1
        if bucket.tokens < limit.wanted // 4 and (bucket.refill is None or bucket.refill.done()):
            bucket.refill = asyncio.create_task(self._refill(name, limit, bucket))
            bucket.refill.add_done_callback(_retrieved)

    async def _refill(self, name: str, limit: _Limit, bucket: _Bucket) -> None:
        given, wait = await self._scripts.call(
            _TAKE, (name,), (repr(limit.rule.rate), limit.rule.burst, limit.wanted)
        )
        now = time.monotonic()
        bucket.tokens += given
        bucket.until = now + _STALE_SECONDS
        if not given and bucket.tokens < 1:
            bucket.empty_until = now + wait / 1e6


def _retrieved(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _exceeded(rule: pb.RateLimit, seconds: float) -> MeshError:
    return resource_exhausted(
        f"The rate limit {rule.name} allows {rule.rate:g} calls a second, {rule.burst} at once. "
        "Slow down.",
        retry_after=max(0.001, seconds),
        reason="RATE_LIMITED",
        subject=rule.name,
    )
