"""Who is in the mesh right now: agents under leases, in Redis.

A record lives as long as its lease. Every change has a revision, and an event under it in a bounded
stream, from which watches resume.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from redis.asyncio import Redis

from bxmesh.registry.v1 import agent_pb2
from bxmesh.server.streams.batching import ScriptBatcher
from bxmesh.server.streams.scripts import Script

_ROOT = "bxmesh:{agents}"
_EXPIRY = f"{_ROOT}:expiry"
_RECORDS = f"{_ROOT}:records"
_LEASES = f"{_ROOT}:leases"
_REVISION = f"{_ROOT}:revision"
EVENTS = f"{_ROOT}:events"
"""The stream of changes; an entry's id is `<revision>-0`, its fields `change` and `agent_id`, `record`."""
_MOST_EVENTS = 10_000

_KEYS = (_EXPIRY, _RECORDS, _LEASES, _REVISION, EVENTS)

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function changed(change, id, record)
  local revision = redis.call('INCR', KEYS[4])
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', %d, revision .. '-0',
             'change', change, 'agent_id', id, 'record', record)
  return revision
end
""" % _MOST_EVENTS

# ARGV: agent id, record, lease id, time to live in ms; returns the revision.
_REGISTER = Script(
    _NOW
    + """
local known = redis.call('HEXISTS', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
return changed(known == 1 and 'change' or 'join', ARGV[1], ARGV[2])
"""
)

# ARGV: agent id, lease id, record, time to live in ms, 1 when others should hear of it
# Returns the revision, or -1 when the lease is over.
_BEAT = Script(
    _NOW
    + """
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return -1 end
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
if ARGV[5] == '1' then return changed('change', ARGV[1], ARGV[3]) end
return tonumber(redis.call('GET', KEYS[4]) or 0)
"""
)

# ARGV: agent id, lease id or "" for any; returns the revision, or -1 when there is no such lease.
_LEAVE = Script(
    _NOW
    + """
local lease = redis.call('HGET', KEYS[3], ARGV[1])
if not lease or (ARGV[2] ~= '' and lease ~= ARGV[2]) then return -1 end
local record = redis.call('HGET', KEYS[2], ARGV[1]) or ''
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return changed('leave', ARGV[1], record)
"""
)

# Removes whoever's lease is over; returns {revision, record…} of those who live.
_LIVE = Script(
    _NOW
    + """
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000)) do
  local record = redis.call('HGET', KEYS[2], id) or ''
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  changed('expire', id, record)
end
local answer = redis.call('HVALS', KEYS[2])
table.insert(answer, 1, tonumber(redis.call('GET', KEYS[4]) or 0))
return answer
"""
)


class LiveAgents:
    """The agents whose leases hold. Methods raise what Redis raises."""

    def __init__(self, redis: Redis) -> None:
        self._scripts = ScriptBatcher(redis)

    async def register(self, agent: agent_pb2.Agent, lease_seconds: float) -> tuple[str, int]:
        """Enters or replaces an agent; returns the id of its new lease and the revision."""
        lease_id = secrets.token_hex(16)
        revision = await self._scripts.call(
            _REGISTER,
            _KEYS,
            [agent.agent_id, agent.SerializeToString(), lease_id, int(lease_seconds * 1000)],
        )
        return lease_id, revision

    async def beat(
        self, agent: agent_pb2.Agent, lease_id: str, lease_seconds: float, *, changed: bool = False
    ) -> int | None:
        """Renews a lease with the agent's present state; returns the revision, None when it is over."""
        revision: int = await self._scripts.call(
            _BEAT,
            _KEYS,
            [
                agent.agent_id,
                lease_id,
                agent.SerializeToString(),
                int(lease_seconds * 1000),
                int(changed),
            ],
        )
        return None if revision < 0 else revision

    async def leave(self, agent_id: str, lease_id: str = "") -> int | None:
        """Removes an agent; returns the revision, None when it was not there under that lease."""
        revision: int = await self._scripts.call(_LEAVE, _KEYS, [agent_id, lease_id])
        return None if revision < 0 else revision

    async def list(self, capabilities: Sequence[str] = ()) -> tuple[list[agent_pb2.Agent], int]:
        """The agents that live and have all the capabilities, by name, and the revision."""
        revision, *records = await self._scripts.call(_LIVE, _KEYS, [])
        agents = [agent_pb2.Agent.FromString(record) for record in records]
        wanted = set(capabilities)
        agents = [a for a in agents if wanted.issubset(c.name for c in a.capabilities)]
        return sorted(agents, key=lambda agent: agent.agent_id), revision
