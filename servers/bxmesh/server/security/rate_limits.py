"""Rate limits: token buckets in Redis, of which servers take some tokens at a time.

A server that holds tokens of a bucket asks nobody. It holds about a tenth of a second's worth at
most, about a tenth of the burst at most, and for a second. From a bucket below 20 calls a second,
or with a burst below 20, it takes what the calls at hand need, so that these are exact. All servers
together let through burst + rate x time, and at most what each of them held before that time.

While Redis is away each server keeps to the whole limit by itself. That lasts for 5 s for most:
then nobody's key or token is accepted any more.
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

from .addresses import source_of
from .identities import Identity
from .patterns import Matcher, matcher
from .policies import Policies

__all__ = ["RateLimiter"]

_LEASE_SECONDS = 0.1
_LEASES_IN_BURST = 10
# Unused tokens are worth nothing after so long: the bucket has filled again meanwhile.
_STALE_SECONDS = 1.0
# How long a call waits for Redis, and how long none asks after that.
_PATIENCE_SECONDS = 1.0
_AWAY_SECONDS = 1.0
_MOST_BUCKETS = 10_000
_MOST_METHODS = 1_000

# KEYS: bucket; ARGV: rate, burst, tokens that are wanted
# Returns {tokens that were given, microseconds until there is one more when these are fewer}.
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
return {given, given < wanted and math.ceil((1 - tokens) * 1000000 / rate) or 0}
""")


class _Limit(NamedTuple):
    rule: pb.RateLimit
    methods: Matcher | None
    identities: frozenset[str]
    own: bool
    lease: int

    @classmethod
    def of(cls, rule: pb.RateLimit, own: bool = False) -> _Limit:
        lease = max(1, min(rule.burst // _LEASES_IN_BURST, int(rule.rate * _LEASE_SECONDS)))
        identities = frozenset(() if own else rule.identities)
        return cls(rule, matcher(rule.methods), identities, own, lease)

    def covers(self, method: str) -> bool:
        return self.methods is None or bool(self.methods.fullmatch(method))

    def concerns(self, identity: Identity) -> bool:
        return (
            not self.identities
            or identity.id in self.identities
            or not self.identities.isdisjoint(identity.roles)
        )

    def bucket(self, identity: Identity, method: str, address: str) -> str:
        """Returns the key of the bucket in Redis."""
        match self.rule.scope:
            case pb.RATE_LIMIT_SCOPE_METHOD:
                subject = method
            case pb.RATE_LIMIT_SCOPE_IP:
                subject = source_of(address)
            case pb.RATE_LIMIT_SCOPE_IDENTITY_AND_METHOD:
                subject = f"{identity.id} {method}"
            case _:
                subject = identity.id
        if self.own:
            # By the identity and not by the key: a rotated key has no new burst.
            subject = f"own {identity.id} {subject}"
        return f"bxmesh:{{limit:{subject}|{self.rule.name}}}"


class _Bucket:
    """What this server holds of a bucket."""

    __slots__ = ("empty_until", "level", "level_time", "refill", "tokens", "until", "waiting")

    def __init__(self, limit: _Limit) -> None:
        self.tokens = 0
        self.waiting = 0
        self.until = 0.0
        self.empty_until = 0.0
        self.refill: asyncio.Task[None] | None = None
        self.level = float(limit.rule.burst)
        self.level_time = 0.0

    @property
    def refilling(self) -> bool:
        return self.refill is not None and not self.refill.done()

    def take_alone(self, rule: pb.RateLimit, wanted: int, now: float) -> tuple[int, float]:
        """Gives tokens like the script, without Redis; the time is in microseconds too."""
        level = min(rule.burst, self.level + (now - self.level_time) * rule.rate)
        given = int(min(wanted, level))
        self.level, self.level_time = level - given, now
        return given, (1 - self.level) * 1e6 / rule.rate if given < wanted else 0


class RateLimiter:
    """Counts calls against the limits of the policy."""

    def __init__(self, redis: Redis, policies: Policies) -> None:
        self._scripts = ScriptBatcher(redis)
        self._policies = policies
        self._limits: tuple[_Limit, ...] = ()
        self._of_method: dict[str, tuple[_Limit, ...]] = {}
        self._of_credential: dict[str, _Limit] = {}
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._away_until = 0.0
        policies.on_change(self._read)
        self._read()

    def _read(self) -> None:
        self._limits = tuple(map(_Limit.of, self._policies.policy.rate_limits))
        self._of_method.clear()
        # What is empty by the limits of before may not be by these.
        self._buckets.clear()

    async def count(self, identity: Identity, method: str, address: str) -> None:
        """Counts a call; raises MeshError RESOURCE_EXHAUSTED (RATE_LIMITED) over a limit."""
        for limit in self._covering(identity, method):
            if limit.concerns(identity):
                await self._take(limit, limit.bucket(identity, method, address))

    def _covering(self, identity: Identity, method: str) -> tuple[_Limit, ...]:
        limits = self._of_method.get(method)
        if limits is None:
            if len(self._of_method) >= _MOST_METHODS:
                self._of_method.clear()
            limits = tuple(limit for limit in self._limits if limit.covers(method))
            self._of_method[method] = limits
        if identity.rate_limit is None:
            return limits
        own = self._own(identity.credential, identity.rate_limit)
        if not own.covers(method):
            return limits
        # The key's own limit takes the place of those of its identity.
        others = (pb.RATE_LIMIT_SCOPE_METHOD, pb.RATE_LIMIT_SCOPE_IP)
        return (own, *(limit for limit in limits if limit.rule.scope in others))

    def _own(self, credential: str, rule: pb.RateLimit) -> _Limit:
        own = self._of_credential.get(credential)
        if own is None or own.rule is not rule:
            if len(self._of_credential) >= _MOST_BUCKETS:
                self._of_credential.clear()
            own = self._of_credential[credential] = _Limit.of(rule, own=True)
        return own

    async def _take(self, limit: _Limit, name: str) -> None:
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(limit)
            if len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
        now = time.monotonic()
        if bucket.until <= now:
            bucket.tokens = 0
        while bucket.tokens < 1:
            if now < bucket.empty_until:
                raise _exceeded(limit.rule, bucket.empty_until - now)
            bucket.waiting += 1
            try:
                if not bucket.refilling:
                    bucket.refill = asyncio.create_task(self._refill(name, limit, bucket))
                assert bucket.refill is not None
                # Shielded: others wait for the same tokens.
                await asyncio.shield(bucket.refill)
            finally:
                bucket.waiting -= 1
            now = time.monotonic()
        bucket.tokens -= 1
        if bucket.tokens < limit.lease // 4 and now >= bucket.empty_until and not bucket.refilling:
            bucket.refill = asyncio.create_task(self._refill(name, limit, bucket))

    async def _refill(self, name: str, limit: _Limit, bucket: _Bucket) -> None:
        rule, wanted = limit.rule, max(limit.lease, bucket.waiting)
        given, wait = await self._ask(name, rule, wanted) or bucket.take_alone(
            rule, wanted, time.monotonic()
        )
        now = time.monotonic()
        bucket.tokens += given
        bucket.until = now + _STALE_SECONDS
        if given < wanted:
            bucket.empty_until = now + wait / 1e6

    async def _ask(self, name: str, rule: pb.RateLimit, wanted: int) -> tuple[int, float] | None:
        """Returns what the script does, None without Redis."""
        if time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                given, wait = await self._scripts.call(
                    _TAKE, (name,), (repr(rule.rate), rule.burst, wanted)
                )
        except REDIS_ERRORS:
            self._away_until = time.monotonic() + _AWAY_SECONDS
            return None
        return given, wait


def _exceeded(rule: pb.RateLimit, seconds: float) -> MeshError:
    return resource_exhausted(
        f"The rate limit {rule.name} allows {rule.rate:g} calls a second, {rule.burst} at once. "
        "Slow down.",
        retry_after=max(0.001, seconds),
        reason="RATE_LIMITED",
        subject=rule.name,
    )
