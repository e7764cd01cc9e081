"""Circuit breakers: what fails again and again gets nothing for a while, then one trial at a time.

A target is named by its kind: `agent/<id>`, `capability/<name>`. The first breaker of the policy
whose pattern fits counts for it. All servers share what has become of a target, by the clock of
Redis. A target without a breaker costs nothing, and to ask about one that is closed costs at most
one look at all that are open every quarter of a second: so late may a server hear that another one
opened a circuit.

Failures in a row are forgotten a day after the last of them, and so is a circuit that could have
had a trial for two days. Without Redis everything is allowed and nothing is counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from bxmesh.security.v1.policy_pb2 import CircuitBreaker
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.connection import REDIS_ERRORS
from bxmesh.server.streams.scripts import NOW, Script

from .events import IGNORED, AuditEvent, SecurityEvents
from .patterns import Matcher, matcher
from .policy_source import NO_POLICY, PolicySource

__all__ = ["ALL_CLOSED", "TARGET_KINDS", "CircuitBreakers", "agent_target", "capability_target"]

TARGET_KINDS = ("agent/", "capability/")
"""What the names of targets begin with."""

_log = logging.getLogger(__name__)

_OPEN = "bxmesh:{circuits}:open"
_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 1.0
_SHORTEST_TRIAL_SECONDS = 10.0
_LONGEST_TRIAL_SECONDS = 7 * 86400.0
_MOST_TARGETS = 10_000
_DAY_MS = 86_400_000

_FAILED, _NEITHER, _SUCCEEDED = "failed", "neither", "succeeded"
_IGNORED, _OPENED, _CLOSED, _TRIED = range(4)

# A target is a hash: `failures` in a row while it is closed; once it was opened `opened` (when),
# `successes` of trials, and the `trial` that is under way with its end.
# KEYS: the open ones, targets…; ARGV: trial, its longest time in ms, then for each target its name
# and how long it stays open in ms. Returns 1 when all may be used; open ones then have their trial.
_ALLOW = Script(
    NOW
    + f"local DAY_MS = {_DAY_MS}"
    + """
local now, longest = now(), tonumber(ARGV[2])
for i = 2, #KEYS do
  local known = redis.call('HMGET', KEYS[i], 'opened', 'trial_end')
  local opened, trial_end = tonumber(known[1]), tonumber(known[2])
  if opened and (now < opened + ARGV[2 * i] or (trial_end and now < trial_end)) then return 0 end
end
for i = 2, #KEYS do
  if redis.call('HEXISTS', KEYS[i], 'opened') == 1 then
    redis.call('HSET', KEYS[i], 'trial', ARGV[1], 'trial_end', now + longest)
    redis.call('PEXPIRE', KEYS[i], 2 * DAY_MS + longest)
    redis.call('ZADD', KEYS[1], now + 2 * DAY_MS + longest, ARGV[2 * i - 1])
    redis.call('PEXPIRE', KEYS[1], 10 * DAY_MS)
  end
end
return 1
"""
)

# KEYS: the open ones, target; ARGV: name, trial or "", what came of it, failure threshold, success
# threshold. Returns what that did.
_TELL = Script(
    NOW
    + f"local DAY_MS, IGNORED, OPENED, CLOSED, TRIED = {_DAY_MS}, {_IGNORED}, {_OPENED}, {_CLOSED}, {_TRIED}"
    + """
local now, what = now(), ARGV[3]
local known = redis.call('HMGET', KEYS[2], 'opened', 'trial')
local function open()
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[2], 'opened', now)
  redis.call('PEXPIRE', KEYS[2], 3 * DAY_MS)
  redis.call('ZADD', KEYS[1], now + 3 * DAY_MS, ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 10 * DAY_MS)
  return OPENED
end
if not known[1] then
  if what == 'succeeded' then redis.call('DEL', KEYS[2]) end
  if what ~= 'failed' then return IGNORED end
  if redis.call('HINCRBY', KEYS[2], 'failures', 1) >= tonumber(ARGV[4]) then return open() end
  redis.call('PEXPIRE', KEYS[2], DAY_MS)
  return IGNORED
end
-- What was begun before it opened says nothing new.
if not known[2] or (ARGV[2] ~= '' and ARGV[2] ~= known[2]) then return IGNORED end
if what == 'failed' then return open() end
redis.call('HDEL', KEYS[2], 'trial', 'trial_end')
if what == 'succeeded' and redis.call('HINCRBY', KEYS[2], 'successes', 1) >= tonumber(ARGV[5]) then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[1])
  return CLOSED
end
return TRIED
"""
)

# KEYS: the open ones; ARGV: at most so many, what the keys of targets begin with
# Returns now, then {name, when it opened, when its trial ends or 0} of each, all in ms.
_LOOK = Script(
    NOW
    + """
local now = now()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local found = {now}
for _, name in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  local known = redis.call('HMGET', ARGV[2] .. name, 'opened', 'trial_end')
  if known[1] then
    found[#found + 1] = {name, tonumber(known[1]), tonumber(known[2] or 0)}
  end
end
return found
"""
)


class _Rule(NamedTuple):
    breaker: CircuitBreaker
    target: Matcher

    @property
    def open_ms(self) -> int:
        return max(1, self.breaker.open_duration.ToMilliseconds())


def agent_target(agent_id: str) -> str:
    """Names an agent."""
    return f"agent/{agent_id}"


def capability_target(name: str) -> str:
    """Names a capability, whoever offers it."""
    return f"capability/{name}"


class CircuitBreakers:
    """The circuits as one server sees them. No method raises for Redis."""

    def __init__(self, redis: Redis | None, policies: PolicySource, events: SecurityEvents) -> None:
        """`redis` may be None where there is never a policy."""
        self._scripts = ScriptBatcher(redis) if redis is not None else None
        self._policies = policies
        self._events = events
        self._version = -1
        self._rules: list[_Rule] = []
        self._rule_of: dict[str, _Rule | None] = {}
        self._open: dict[str, float] = {}
        """From when on an open one may be tried, as far as is known here."""
        self._next_look = 0.0
        self._looking = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has a function called when a circuit opens or closes here, or may be tried again."""
        # Where there is never a policy nothing changes, and nobody is kept alive for it.
        if self._scripts is not None:
            self._listeners.append(listener)

    async def allows(
        self, target: str, *others: str, trial: str = "", longest: float = 60.0
    ) -> bool:
        """Returns whether a target, or all of several, may be used now.

        What is let through an open circuit is its trial: the circuit lets nothing else through until
        it is told what came of it, or for `longest` seconds (10 at least). With a name, other
        uses of the target are no answer to it.
        """
        ruled = self._ruled(target, *others)
        if not ruled:
            return True
        await self.look()
        if all(name not in self._open for name, _ in ruled):
            return True
        longest = min(max(longest, _SHORTEST_TRIAL_SECONDS), _LONGEST_TRIAL_SECONDS)
        arguments: list[str | int] = [trial, int(1000 * longest)]
        for name, rule in ruled:
            arguments += [name, rule.open_ms]
        keys = [_OPEN, *(_key(name) for name, _ in ruled)]
        allowed = bool(await self._call(_ALLOW, keys, arguments, 1))
        # Which one has its trial now, or had it, the next look says.
        self._next_look = 0.0
        return allowed

    async def succeeded(self, target: str, trial: str = "") -> None:
        """Says that a use of a target went well."""
        await self._tell(target, trial, _SUCCEEDED)

    async def failed(self, target: str, trial: str = "") -> None:
        """Says that a use of a target failed."""
        await self._tell(target, trial, _FAILED)

    async def abandoned(self, target: str, trial: str = "") -> None:
        """Says that a use of a target came to nothing that says how it is."""
        await self._tell(target, trial, _NEITHER)

    async def open_targets(self) -> list[str]:
        """Returns the circuits that are open, or may be tried; those of the policy in force."""
        if not self._has_rules():
            return []
        self._next_look = 0.0
        await self.look()
        return sorted(self._open)

    async def look(self) -> None:
        """Sees what is open, unless it did a moment ago."""
        if not self._has_rules():
            return
        # Whoever comes meanwhile needs what it sees.
        if time.monotonic() < self._next_look and not self._looking.locked():
            return
        async with self._looking:
            begun = time.monotonic()
            if begun < self._next_look:
                return
            # What changes meanwhile sets it back.
            self._next_look = begun + _LOOK_SECONDS
            try:
                found = await self._call(_LOOK, [_OPEN], [_MOST_TARGETS, _key("")], None)
            except BaseException:
                self._next_look = 0.0
                raise
            self._open = {}
            if found is None:
                return
            now, *rows = found
            for encoded, opened, trial_end in rows:
                name = encoded.decode()
                rule = self._rule(name)
                if rule is not None:
                    until = max(opened + rule.open_ms, trial_end)
                    self._open[name] = begun + (until - now) / 1000

    def closed(self, *targets: str) -> bool:
        """Returns whether none of them was open at the last look."""
        return not self._open or all(target not in self._open for target in targets)

    def may_try(self, *targets: str) -> bool:
        """Returns whether each of them was closed at the last look, or is due for a trial."""
        if not self._open:
            return True
        now = time.monotonic()
        return all(self._open.get(target, now) <= now for target in targets)

    async def _tell(self, target: str, trial: str, what: str) -> None:
        rule = self._rule(target)
        if rule is None:
            return
        breaker = rule.breaker
        did = await self._call(
            _TELL,
            [_OPEN, _key(target)],
            [target, trial, what, breaker.failure_threshold, max(1, breaker.success_threshold)],
            _IGNORED,
        )
        if did == _IGNORED:
            return
        self._next_look = 0.0
        if did == _OPENED:
            self._note("circuit.opened", target, breaker)
        elif did == _CLOSED:
            self._note("circuit.closed", target, breaker)
        for listener in self._listeners:
            listener()

    def _note(self, event_type: str, target: str, breaker: CircuitBreaker) -> None:
        _log.info("%s: %s", event_type, target)
        details = {"breaker": breaker.target}
        self._events.note(AuditEvent(event_type, resource=target, details=details))

    async def _call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int], without: Any
    ) -> Any:
        """Returns what a script answers, or what stands for that without Redis."""
        if self._scripts is None:
            return without
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._scripts.call(script, keys, arguments)
        except REDIS_ERRORS as error:
            _log.info("circuit breakers are not kept to: %s", error)
            return without

    def _ruled(self, *targets: str) -> list[tuple[str, _Rule]]:
        found = ((target, self._rule(target)) for target in targets)
        return [(target, rule) for target, rule in found if rule is not None]

    def _rule(self, target: str) -> _Rule | None:
        if not self._has_rules():
            return None
        if target not in self._rule_of:
            if len(self._rule_of) >= _MOST_TARGETS:
                self._rule_of.clear()
            self._rule_of[target] = next(
                (rule for rule in self._rules if rule.target.fullmatch(target)), None
            )
        return self._rule_of[target]

    def _has_rules(self) -> bool:
        if self._version != self._policies.policy_version:
            self._version = self._policies.policy_version
            self._rule_of.clear()
            self._open, self._next_look = {}, 0.0
            self._rules = []
            for breaker in self._policies.policy.circuit_breakers:
                target = matcher([breaker.target])
                assert target is not None
                self._rules.append(_Rule(breaker, target))
        return bool(self._rules)


def _key(target: str) -> str:
    return f"bxmesh:{{circuits}}:of:{target}"


ALL_CLOSED = CircuitBreakers(None, NO_POLICY, IGNORED)
"""The circuits where there is no policy."""
