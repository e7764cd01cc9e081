"""The steps of the work mechanism that must be atomic, as Lua scripts.

Each script only touches keys of one queue. Entries are opaque to them: a stream entry has the
field `entry` (a serialised WorkEntry), `deliveries` (how often a worker took it and vanished) and,
when it no longer is where its ticket says, `moved`. What can be refused, for lack of memory say,
comes first in a script, so that a refused script has done nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from bxmesh.server.streams.keys import GROUP


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest that Redis knows it by."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


NOW = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# Tells every server in a set that something it wanted to know of has changed, once: the set is then
# empty. What is published is a Notice with a topic.
RING = """
local function ring(root, topic)
  local wanted = root .. ':wanted:' .. topic
  local channels = redis.call('SMEMBERS', wanted)
  if #channels == 0 then return end
  local n = #topic
  local length = n < 128 and string.char(n) or string.char(n % 128 + 128, math.floor(n / 128))
  for _, channel in ipairs(channels) do
    redis.call('PUBLISH', channel, '\\10' .. length .. topic)
  end
  redis.call('DEL', wanted)
end
"""

# Puts an entry into a stream. In a mailbox it also makes the stream and tells its readers.
PLACE = (
    RING
    + f"""
local function place(stream, entry, deliveries, ...)
  local root, agent = string.match(stream, '^(.+):inbox:(.+):%d$')
  if root and redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, '{GROUP}', '0', 'MKSTREAM')
    redis.call('SADD', root .. ':mailboxes', agent)
  end
  local id = redis.call('XADD', stream, '*', 'entry', entry, 'deliveries', deliveries, ...)
  if root then ring(root, 'inbox:' .. agent) end
  return id
end
local function depth(stream)
  local mailbox = string.match(stream, '^(.+:inbox:.+:)%d$')
  if not mailbox then return redis.call('XLEN', stream) end
  local sum = 0
  for priority = 1, 4 do sum = sum + redis.call('XLEN', mailbox .. priority) end
  return sum
end
"""
)

# A repeated request id stands for the first item. KEYS[2]: request; ARGV: entry, item id, lifetime
# in ms or 0.
REPEATED = """
local lifetime = tonumber(ARGV[3])
if lifetime > 0 then
  local first = redis.call('HGET', KEYS[2], 'item')
  if first then
    redis.call('HINCRBY', KEYS[2], 'joined', 1)
    return {0, first}
  end
end
local function remember()
  if lifetime > 0 then
    redis.call('HSET', KEYS[2], 'item', ARGV[2])
    redis.call('PEXPIRE', KEYS[2], lifetime)
  end
end
"""

# KEYS: shared, request (or shared), lane (or shared), lanes, delayed
# ARGV: entry, item id, request lifetime in ms or 0, maximal depth, lane's worker id or ""
# Returns {1, item id, stream, entry id} | {0, first item id} for a repeated request | {-1, depth}
# when full.
ENQUEUE = Script(
    NOW
    + REPEATED
    + """
local stream, most = KEYS[1], tonumber(ARGV[4])
if ARGV[5] ~= '' then
  local held_until = redis.call('ZSCORE', KEYS[4], ARGV[5])
  if held_until and tonumber(held_until) > now() and redis.call('XLEN', KEYS[3]) < most then
    stream = KEYS[3]
  end
end
if stream == KEYS[1] then
  local depth = redis.call('XLEN', stream) + redis.call('ZCARD', KEYS[5])
  if depth >= most then return {-1, depth} end
end
local id = redis.call('XADD', stream, '*', 'entry', ARGV[1], 'deliveries', 0)
remember()
return {1, ARGV[2], stream, id}
"""
)

# A worker that lost its lease must not commit, and what has ended does not end again. Settlements
# return 1 when they came to be, 0 when the entry is not this worker's, 2 when the item had ended.
# KEYS: stream, outcome, …; ARGV: group, worker id, entry id, …
HOLD = """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #pending == 0 or pending[1][2] ~= ARGV[2] then return 0 end
local function leave()
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  redis.call('XDEL', KEYS[1], ARGV[3])
end
"""
SETTLE = (
    HOLD
    + """
if redis.call('EXISTS', KEYS[2]) == 1 then
  leave()
  return 2
end
"""
)

# KEYS: …, request (or outcome); ARGV: …, outcome, its lifetime in ms or 0, event, channel or ""
END = """
if tonumber(ARGV[5]) > 0 then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
end
leave()
if ARGV[7] ~= '' then redis.call('PUBLISH', ARGV[7], ARGV[6]) end
return 1
"""

FINISH = Script(SETTLE + END)

# The dead letters of each mailbox are listed beside the stream that all are in. What has been
# trimmed from that stream may still be in the list.
LAY_DOWN = """
local function lay_down(dead, journal, from, content, most, lifetime, facts)
  local letter = redis.call(
    'XADD', dead, 'MAXLEN', '~', most, '*', 'letter', content, 'from', from)
  local root, agent = string.match(from, '^(.+):inbox:(.+):%d$')
  if root then
    local list = root .. ':dead-of:' .. agent
    redis.call('ZADD', list, string.match(letter, '^%d+'), letter)
    redis.call('ZREMRANGEBYRANK', list, 0, -1 - most)
    redis.call('PEXPIRE', list, lifetime)
  end
  redis.call('XADD', journal, 'NOMKSTREAM', 'MAXLEN', '~', 10000, '*', 'letter', letter,
    'from', from, 'facts', facts)
  return letter
end
"""

# KEYS: …, dead, journal; ARGV: …, letter, most letters, their lifetime in ms, facts for the journal
BURY = Script(
    SETTLE
    + LAY_DOWN
    + "lay_down(KEYS[4], KEYS[5], KEYS[1], ARGV[8], ARGV[9], ARGV[10], ARGV[11])"
    + END
)

# How many retries of a mailbox wait is counted with its figures.
DELAYED = """
local function delayed(stream, more)
  local root, agent = string.match(stream, '^(.+):inbox:(.+):%d$')
  if root then redis.call('HINCRBY', root .. ':figures:' .. agent, 'delayed', more) end
end
"""

# KEYS: …, delayed; ARGV: …, new entry, delay in ms, the stream that it goes back to
RETRY = Script(
    NOW
    + DELAYED
    + SETTLE
    + """
local member = ARGV[6] .. '\\n' .. ARGV[4]
if redis.call('ZADD', KEYS[3], now() + ARGV[5], member) == 1 then delayed(ARGV[6], 1) end
leave()
return 1
"""
)

# KEYS: stream, the entries' outcomes…; ARGV: group, worker id, entry ids…
# Returns the ids at which to work on makes no sense: the lease is lost, or the item has ended.
RENEW = Script(
    """
local over = {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  local held = #pending == 1 and pending[1][2] == ARGV[2]
  if held then redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID') end
  if not held or redis.call('EXISTS', KEYS[i - 1]) == 1 then over[#over + 1] = ARGV[i] end
end
return over
"""
)

# What has lost its home goes to the shared stream.
# KEYS: delayed, shared; ARGV: at most so many; returns {moved, ms until the next is due or -1}
MOVE_DUE = Script(
    NOW
    + DELAYED
    + PLACE
    + """
local now = now()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  local home, entry = string.match(member, '^(bxmesh:[^\\n]+)\\n(.*)$')
  place(home or KEYS[2], entry or member, 0, 'moved', 1)
  redis.call('ZREM', KEYS[1], member)
  delayed(home or '', -1)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local wait = -1
if #next == 2 then wait = math.max(0, tonumber(next[2]) - now) end
return {#due, wait}
"""
)

# ARGV: group, …
MOVE = (
    PLACE
    + """
local function move(from, to, id, more)
  local found = redis.call('XRANGE', from, id, id)
  if #found == 1 then
    local fields, entry, deliveries = found[1][2], '', 0
    for i = 1, #fields, 2 do
      if fields[i] == 'entry' then entry = fields[i + 1] end
      if fields[i] == 'deliveries' then deliveries = tonumber(fields[i + 1]) or 0 end
    end
    deliveries = string.format('%.0f', deliveries + more)
    place(to, entry, deliveries, 'moved', 1)
  end
  redis.call('XACK', from, ARGV[1], id)
  redis.call('XDEL', from, id)
end
"""
)

# Puts entries that a worker took and did not finish back for any worker. Deliveries to a worker
# that vanished are counted; those that a worker hands back unstarted are not.
# KEYS: stream, where they go
# ARGV: group, shortest idle time in ms, worker id or "" for any, at most so many, 1 to count, ids
# to leave…
REQUEUE = Script(
    MOVE
    + """
local kept = {}
for i = 6, #ARGV do kept[ARGV[i]] = true end
local query = {'XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[2], '-', '+', ARGV[4] + #ARGV - 5}
if ARGV[3] ~= '' then query[#query + 1] = ARGV[3] end
local moved = 0
for _, row in ipairs(redis.call(unpack(query))) do
  if not kept[row[1]] then
    move(KEYS[1], KEYS[2], row[1], row[4] * ARGV[5])
    moved = moved + 1
  end
end
return moved
"""
)

# KEYS: lanes, lane; ARGV: group, worker id, lease in ms
HOLD_LANE = Script(
    NOW
    + """
redis.call('ZADD', KEYS[1], now() + ARGV[3], ARGV[2])
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[1], '0', 'MKSTREAM')
"""
)

# KEYS: lanes; returns the workers that no longer hold theirs, some of them when there are many.
SILENT_LANES = Script(
    NOW + "return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now(), 'LIMIT', 0, 100)"
)

# Hands what nobody has taken from a lane to all workers; call it until it returns 0. A lane that is
# held stays; one that is empty goes in the same step, so that nothing is ever added to a lane
# without a reader.
# KEYS: lane, shared, lanes; ARGV: group, worker id, at most so many
CLOSE_LANE = Script(
    NOW
    + MOVE
    + """
local held_until = redis.call('ZSCORE', KEYS[3], ARGV[2])
if held_until and tonumber(held_until) > now() then return 0 end
local moved = 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0')
  local taken = redis.call(
    'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
  if taken then
    for _, entry in ipairs(taken[1][2]) do
      move(KEYS[1], KEYS[2], entry[1], 0)
      moved = moved + 1
    end
  end
end
if moved == 0 and redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[3], ARGV[2])
end
return moved
"""
)

# Deleting a consumer would lose what it holds. KEYS: stream; ARGV: group, worker id
FORGET_CONSUMER = Script(
    """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""
)

# Takes back work that nobody waits for. Untouched work vanishes; whoever is at it is told.
# KEYS: stream, outcome, request (or outcome)
# ARGV: group, entry id, item id, outcome, lifetime in ms, cancellations channel,
#       1 to let it be when the request was repeated
# Returns 1 when it had not been started, else 0.
CANCEL = Script(
    """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if KEYS[3] ~= KEYS[2] and redis.call('HGET', KEYS[3], 'item') == ARGV[3] then
  if ARGV[7] == '1' and redis.call('HEXISTS', KEYS[3], 'joined') == 1 then return 0 end
  redis.call('DEL', KEYS[3])
end
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
local taken = not pending.err and #pending > 0
if not taken and redis.call('XDEL', KEYS[1], ARGV[2]) == 1 then return 1 end
redis.call('PUBLISH', ARGV[6], ARGV[3])
return 0
"""
)

# KEYS: outcome
FORGET_OUTCOME = Script("return redis.call('DEL', KEYS[1])")

# Takes a letter out of the dead letters.
_TAKE_OUT = """
local function take_out(id)
  local found = redis.call('XRANGE', KEYS[1], id, id)
  if #found == 0 then return 0 end
  local fields = found[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'from' then
      local root, agent = string.match(fields[i + 1], '^(.+):inbox:(.+):%d$')
      if root then redis.call('ZREM', root .. ':dead-of:' .. agent, id) end
    end
  end
  return redis.call('XDEL', KEYS[1], id)
end
"""

# What one request does in many steps it counts, so that a repetition goes on where it broke off.
# KEYS: dead, where it goes, outcome, the request's count (or dead)
# ARGV: letter id, entry, lifetime of the count in ms or 0 for none, most that the request may do,
# how full what it goes to may be or 0 for any
# Returns 1 when the letter was still there, 0 when not, -1 when the request has done its most, -2
# when it is full.
REPLAY = Script(
    PLACE
    + _TAKE_OUT
    + """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
local counted, most = tonumber(ARGV[3]) > 0, tonumber(ARGV[5])
if counted and tonumber(redis.call('HGET', KEYS[4], 'count') or 0) >= tonumber(ARGV[4]) then
  return -1
end
if most > 0 and depth(KEYS[2]) >= most then return -2 end
place(KEYS[2], ARGV[2], 0, 'moved', 1)
take_out(ARGV[1])
redis.call('DEL', KEYS[3])
if counted then
  redis.call('HINCRBY', KEYS[4], 'count', 1)
  redis.call('PEXPIRE', KEYS[4], ARGV[3])
end
return 1
"""
)

# KEYS: dead, the request's count (or dead); ARGV: lifetime of the count in ms or 0 for none, letter
# ids…; returns how many were there.
PURGE = Script(
    _TAKE_OUT
    + """
local purged = 0
for i = 2, #ARGV do purged = purged + take_out(ARGV[i]) end
if tonumber(ARGV[1]) > 0 and purged > 0 then
  redis.call('HINCRBY', KEYS[2], 'count', purged)
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return purged
"""
)

# A part of a stream that is not larger than it needs to be, but for its last entry.
# KEYS: stream; ARGV: XRANGE or XREVRANGE, where it begins, where it ends, most entries, most bytes
# Returns {1 when that was all, entries}.
READ_PART = Script(
    """
local most, most_bytes, from = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[2]
local found, bytes, step = {}, 0, 1
while #found < most and bytes < most_bytes do
  local wanted = math.min(step, most - #found)
  local page = redis.call(ARGV[1], KEYS[1], from, ARGV[3], 'COUNT', wanted)
  for _, entry in ipairs(page) do
    found[#found + 1] = entry
    for _, value in ipairs(entry[2]) do bytes = bytes + #value end
    from = '(' .. entry[1]
  end
  if #page < wanted then return {1, found} end
  step = math.max(1, math.min(64, 2 * step, math.floor((most_bytes - bytes) * #found / bytes)))
end
return {0, found}
"""
)
