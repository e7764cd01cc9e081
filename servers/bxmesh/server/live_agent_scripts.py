"""The steps on live agents that must be atomic, as Lua scripts.

Beside the agents by name (packed: record, lease, owner, revision and beat, the time of the last
heartbeat in ms) there are the times at which their leases end and their names by lease.
"""

from __future__ import annotations

from bxmesh.server.streams.scripts import Script

_ROOT = "bxmesh:{agents}"
EVENTS = f"{_ROOT}:events"
"""The stream of changes; the id of an entry is `<revision>-0`."""
OWNERS = f"{_ROOT}:owners"
"""The identities to which the names of agents belong, after they have left too."""
KEYS = (
    f"{_ROOT}:expiry",
    f"{_ROOT}:agents",
    f"{_ROOT}:leases",
    f"{_ROOT}:revision",
    EVENTS,
    f"{_ROOT}:expired",
    OWNERS,
    f"{_ROOT}:named",
)


def request_key(identity: str, method: str, request_id: str) -> str:
    """Returns the key of the first answer to a request."""
    return f"{_ROOT}:request:{identity}:{method}:{request_id}"


_MOST_EVENTS = 10_000
# So long after its last registration a name is free for others.
_NAME_MS = 30 * 86_400_000

_BASE = f"""
local EXPIRY, AGENTS, LEASES = KEYS[1], KEYS[2], KEYS[3]
local REVISION, EVENTS, EXPIRED = KEYS[4], KEYS[5], KEYS[6]
local OWNERS, NAMED = KEYS[7], KEYS[8]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function find(id)
  local packed = redis.call('HGET', AGENTS, id)
  return packed and cmsgpack.unpack(packed)
end
local function keep(id, agent)
  redis.call('HSET', AGENTS, id, cmsgpack.pack(agent))
end
local function revision()
  return tonumber(redis.call('GET', REVISION) or 0)
end
local function tell(kind, agent, before, message)
  local revision = redis.call('INCR', REVISION)
  if kind == 'join' or kind == 'change' then agent.revision = revision end
  redis.call('XADD', EVENTS, 'MAXLEN', '~', {_MOST_EVENTS}, revision .. '-0', 'kind', kind,
    'record', agent.record, 'revision', agent.revision, 'beat', agent.beat, 'before', before,
    'message', message, 'time', now)
  return revision
end
local function remove(id, agent, why, message)
  redis.call('ZREM', EXPIRY, id)
  redis.call('HDEL', AGENTS, id)
  redis.call('HDEL', LEASES, agent.lease)
  return tell(why, agent, agent.record, message)
end
local function expire()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'LIMIT', 0, 1000)) do
    local agent = find(id)
    if agent then remove(id, agent, 'expired', '') else redis.call('ZREM', EXPIRY, id) end
    redis.call('INCR', EXPIRED)
  end
end
local function alive(id)
  local expiry = id and redis.call('ZSCORE', EXPIRY, id)
  return expiry and tonumber(expiry) > now and find(id) or nil
end
local function beat(id, agent, record, lifetime, changed)
  local before = agent.record
  redis.call('ZADD', EXPIRY, now + lifetime, id)
  agent.record, agent.beat = record, now
  if changed then tell('change', agent, before, '') end
  keep(id, agent)
end
expire()
"""

# A repeated request gets its first answer, unless that was remembered for 0 ms. KEYS[9]: request
_REPEATED = """
local function answer(remember_ms, values)
  if tonumber(remember_ms) > 0 then
    redis.call('SET', KEYS[9], cmsgpack.pack(values), 'PX', remember_ms)
  end
  return values
end
local function answered(remember_ms)
  local packed = tonumber(remember_ms) > 0 and redis.call('GET', KEYS[9])
  return packed and cmsgpack.unpack(packed)
end
"""

# ARGV: agent id, record, lease id, lifetime in ms, owner, most agents, ms to remember the answer
# Returns {revision, lease id, record, beat} | {-1} another owner has the name | {-2} full
REGISTER = Script(
    _BASE
    + _REPEATED
    + f"local NAME_MS = {_NAME_MS}"
    + """
local id = ARGV[1]
local first = answered(ARGV[7])
if first then return first end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', NAMED, '-inf', now - NAME_MS, 'LIMIT', 0, 100)) do
  if not alive(name) then
    redis.call('ZREM', NAMED, name)
    redis.call('HDEL', OWNERS, name)
  end
end
local present = find(id)
local owner = present and present.owner or redis.call('HGET', OWNERS, id)
if owner and owner ~= ARGV[5] then return {-1} end
if not present and redis.call('ZCARD', EXPIRY) >= tonumber(ARGV[6]) then return {-2} end
if present then remove(id, present, 'replaced', '') end
local agent = {record = ARGV[2], lease = ARGV[3], owner = ARGV[5], revision = 0, beat = now}
redis.call('ZADD', EXPIRY, now + ARGV[4], id)
redis.call('HSET', LEASES, ARGV[3], id)
redis.call('HSET', OWNERS, id, ARGV[5])
redis.call('ZADD', NAMED, now, id)
tell('join', agent, '', '')
keep(id, agent)
return answer(ARGV[7], {agent.revision, ARGV[3], ARGV[2], now})
"""
)

# ARGV: agent id, lease id, record, lifetime in ms, 1 when others should hear of it
# Returns the revision, or -1 when the lease is over.
BEAT = Script(
    _BASE
    + """
local agent = alive(ARGV[1])
if not agent or agent.lease ~= ARGV[2] then return -1 end
beat(ARGV[1], agent, ARGV[3], ARGV[4], ARGV[5] == '1')
return revision()
"""
)

# ARGV: lease id, the agent's revision as known, new record or "" for the present, lifetime in ms
# Returns {revision}, {} when the lease is over, or {revision, record} when it is not as known.
RENEW = Script(
    _BASE
    + """
local id = redis.call('HGET', LEASES, ARGV[1])
local agent = alive(id)
if not agent then return {} end
if agent.revision ~= tonumber(ARGV[2]) then return {agent.revision, agent.record} end
local changed = ARGV[3] ~= ''
beat(id, agent, changed and ARGV[3] or agent.record, ARGV[4], changed)
return {agent.revision}
"""
)

# Without the lease, the name is free for others.
# ARGV: agent id, lease id or "" for any, message, ms to remember the answer
# Returns {revision, record, revision of the agent, beat} | {-1} no such agent | {-2} another lease
LEAVE = Script(
    _BASE
    + _REPEATED
    + """
local first = answered(ARGV[4])
if first then return first end
local agent = alive(ARGV[1])
if not agent then return {-1} end
if ARGV[2] ~= '' and agent.lease ~= ARGV[2] then return {-2} end
if ARGV[2] == '' then
  redis.call('ZREM', NAMED, ARGV[1])
  redis.call('HDEL', OWNERS, ARGV[1])
end
local revision = remove(ARGV[1], agent, 'deregistered', ARGV[3])
return answer(ARGV[4], {revision, agent.record, agent.revision, agent.beat})
"""
)

# ARGV: agent id; returns {record, revision, beat}, {} when it is not alive.
GET = Script(
    _BASE
    + """
local agent = alive(ARGV[1])
return agent and {agent.record, agent.revision, agent.beat} or {}
"""
)

# Returns {revision, leases that expired, then record, revision and beat of each agent}.
LIST = Script(
    _BASE
    + """
local answer = {revision(), tonumber(redis.call('GET', EXPIRED) or 0)}
local ids = redis.call('ZRANGEBYSCORE', EXPIRY, '(' .. now, '+inf')
for first = 1, #ids, 1000 do
  local last = math.min(first + 999, #ids)
  for _, packed in ipairs(redis.call('HMGET', AGENTS, unpack(ids, first, last))) do
    if packed then
      local agent = cmsgpack.unpack(packed)
      local n = #answer
      answer[n + 1], answer[n + 2], answer[n + 3] = agent.record, agent.revision, agent.beat
    end
  end
end
return answer
"""
)

# ARGV: revision, at most so many
# Returns {revision, changes after ARGV[1]}, {revision} when they are not kept any more.
CHANGES = Script(
    _BASE
    + """
local after, latest = tonumber(ARGV[1]), revision()
if after == latest then return {latest, {}} end
local oldest = redis.call('XRANGE', EVENTS, '-', '+', 'COUNT', 1)[1]
if after > latest or not oldest or tonumber(string.match(oldest[1], '^%d+')) > after + 1 then
  return {latest}
end
return {latest, redis.call('XRANGE', EVENTS, '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])}
"""
)

# Returns {revision, ms until the next lease ends or -1}.
EXPIRE = Script(
    _BASE
    + """
local next = redis.call('ZRANGE', EXPIRY, 0, 0, 'WITHSCORES')
return {revision(), #next == 2 and math.max(0, tonumber(next[2]) - now) or -1}
"""
)
