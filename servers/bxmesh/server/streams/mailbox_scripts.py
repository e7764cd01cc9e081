"""The steps on mailboxes that must be atomic, as Lua scripts.

A mailbox is four streams, by priority. An entry that a connection has taken is pending under the
connection's name; settling, retrying and burying it are the same steps as for any other work.
"""

from __future__ import annotations

from bxmesh.server.streams.scripts import (
    END,
    HOLD,
    LAY_DOWN,
    MOVE,
    NOW,
    PLACE,
    REPEATED,
    RING,
    Script,
)

# What waits in all mailboxes of their owner is counted anew so often; what is posted meanwhile is
# added to it.
_COUNTED_MS = 250

# KEYS: inbox, request (or inbox), count of the owner (or inbox)
# ARGV: entry, item id, request lifetime in ms or 0, capacity of the mailbox, most mailboxes, most
# that may wait for the owner or 0 for any, the owner's agents for a new count…
# Returns {1, item id, stream, entry id} | {0, first item id} for a repeated request | {-1, depth}
# when full | {-2, mailboxes} when there are too many | {-3, what waits for the owner} when that is
# the most, or {-3, -1} when the owner's agents must be given.
POST = Script(
    REPEATED
    + PLACE
    + f"local COUNTED_MS = {_COUNTED_MS}"
    + """
local here = depth(KEYS[1])
if here >= tonumber(ARGV[4]) then return {-1, here} end
if here == 0 then
  local root, agent = string.match(KEYS[1], '^(.+):inbox:(.+):%d$')
  local mailboxes = root .. ':mailboxes'
  if redis.call('SCARD', mailboxes) >= tonumber(ARGV[5])
    and redis.call('SISMEMBER', mailboxes, agent) == 0 then
    return {-2, redis.call('SCARD', mailboxes)}
  end
end
local most = tonumber(ARGV[6])
if most > 0 then
  local waiting = tonumber(redis.call('GET', KEYS[3]))
  if not waiting then
    if #ARGV == 6 then return {-3, -1} end
    local root = string.match(KEYS[1], '^(.+):inbox:')
    waiting = 0
    for i = 7, #ARGV do
      waiting = waiting + depth(root .. ':inbox:' .. ARGV[i] .. ':1')
        + (tonumber(redis.call('HGET', root .. ':figures:' .. ARGV[i], 'delayed')) or 0)
    end
    redis.call('SET', KEYS[3], waiting, 'PX', COUNTED_MS)
  end
  if waiting >= most then return {-3, waiting} end
end
local id = place(KEYS[1], ARGV[1], 0)
if most > 0 then redis.call('INCR', KEYS[3]) end
remember()
return {1, ARGV[2], KEYS[1], id}
"""
)

# KEYS: inbox, request (or inbox), dead, journal, the mailbox's dead letters
# ARGV: letter, item id, request lifetime in ms or 0, most letters, their lifetime in ms, facts for the
# journal, most letters of the mailbox
# Returns what POST does.
HOLD_BACK = Script(
    REPEATED
    + LAY_DOWN
    + """
local held = redis.call('ZCARD', KEYS[5])
if held >= tonumber(ARGV[7]) then return {-1, held} end
local id = lay_down(KEYS[3], KEYS[4], KEYS[1], ARGV[1], ARGV[4], ARGV[5], ARGV[6])
remember()
return {1, ARGV[2], KEYS[1], id}
"""
)

# The share of each priority, the most urgent first, in 16 deliveries while all have something to
# deliver: nobody starves. What one does not use goes to the most urgent that has more.
# KEYS: wanted, leased, figures, the inboxes of the agent…
# ARGV: group, connection, at most so many, channel that wants to know of more, lease in ms
# Returns {stream, entries} for each inbox with something.
TAKE = Script(
    NOW
    + """
local most, inboxes, taken, count = tonumber(ARGV[3]), #KEYS - 3, {}, 0
local function read(i, n)
  local stream = KEYS[i + 3]
  if n < 1 or redis.call('EXISTS', stream) == 0 then return end
  local page = redis.call(
    'XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', n, 'STREAMS', stream, '>')
  if not page then return end
  taken[#taken + 1] = {stream, page[1][2]}
  count = count + #page[1][2]
end
local turn = redis.call('HINCRBY', KEYS[3], 'turn', most) - most
local wanted = {0, 0, 0, 0}
for i = 0, math.min(most, 16) - 1 do
  local at, class = (turn + i) % 16, 1
  if at % 2 == 1 then class = 2 end
  if at % 4 == 3 then class = 3 end
  if at == 15 then class = 4 end
  wanted[class] = wanted[class] + 1
end
for i = 1, inboxes do read(i, math.floor(wanted[i] * math.max(1, most / 16))) end
for i = 1, inboxes do read(i, most - count) end
if count < most then
  redis.call('SADD', KEYS[1], ARGV[4])
  -- Whoever waits is attached, whatever Redis has lost since.
  local root, agent = string.match(KEYS[3], '^(.+):figures:(.+)$')
  redis.call('SADD', root .. ':attached:' .. agent, ARGV[4])
  redis.call('SADD', root .. ':mailboxes', agent)
end
local now = now()
for _, page in ipairs(taken) do
  redis.call('ZADD', KEYS[2], 'NX', now + ARGV[5], page[1])
end
if count > 0 then
  -- Deliveries are counted by ten seconds, for a minute.
  local slot = math.floor(now / 10000)
  local field = 'delivered' .. slot % 7
  local before = redis.call('HGET', KEYS[3], field)
  local at, sum = string.match(before or '', '^(%d+):(%d+)$')
  if at ~= string.format('%.0f', slot) then sum = 0 end
  redis.call('HSET', KEYS[3], field, string.format('%.0f:%.0f', slot, sum + count))
end
return taken
"""
)

# What a connection holds. KEYS: the inboxes of the agent…; ARGV: group, connection
# Returns {stream, entries, how often each was delivered} for each inbox with something; an entry
# that is gone has no fields.
HELD = Script(
    """
local held = {}
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    local page = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'STREAMS', KEYS[i], '0')
    if page and #page[1][2] > 0 then
      local entries, counts = page[1][2], {}
      for j, entry in ipairs(entries) do
        counts[j] = redis.call('XPENDING', KEYS[i], ARGV[1], entry[1], entry[1], 1)[1][4]
      end
      held[#held + 1] = {KEYS[i], entries, counts}
    end
  end
end
return held
"""
)

# Enters a connection. What connections made under other leases hold goes back at once: they
# belong to a process that has been replaced.
# KEYS: connections, attached, the inboxes of the agent…
# ARGV: group, connection, lease id, channel
ATTACH = Script(
    MOVE
    + """
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('SADD', KEYS[2], ARGV[4])
local root, agent = string.match(KEYS[1], '^(.+):connections:(.+)$')
redis.call('SADD', root .. ':mailboxes', agent)
local others = {}
for name, lease in pairs((function()
  local all, pairs_ = redis.call('HGETALL', KEYS[1]), {}
  for i = 1, #all, 2 do pairs_[all[i]] = all[i + 1] end
  return pairs_
end)()) do
  -- Connections that are gone hold something at first; that comes to an end.
  local gone = string.sub(lease, 1, 5) == 'gone:'
  if name ~= ARGV[2] and (gone or lease ~= ARGV[3]) then
    others[name] = lease ~= ARGV[3] and lease ~= 'gone:' .. ARGV[3]
  end
end
local holding = {}
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    for name, replaced in pairs(others) do
      if replaced then
        for _, row in ipairs(redis.call('XPENDING', KEYS[i], ARGV[1], '-', '+', 10000, name)) do
          move(KEYS[i], KEYS[i], row[1], row[4])
        end
      end
      if #redis.call('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, name) == 0 then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], name)
      else
        holding[name] = true
      end
    end
  end
end
for name, _ in pairs(others) do
  if not holding[name] then redis.call('HDEL', KEYS[1], name) end
end
"""
)

# Forgets a connection that holds nothing, and the server's channel when it was its last.
# KEYS: connections, attached, the inboxes of the agent…
# ARGV: group, connection, channel or "" when the server has more connections of the agent
DETACH = Script(
    """
if ARGV[3] ~= '' then redis.call('SREM', KEYS[2], ARGV[3]) end
local holds = false
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    if #redis.call('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
      holds = true
    else
      redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], ARGV[2])
    end
  end
end
local lease = redis.call('HGET', KEYS[1], ARGV[2])
if not holds then
  redis.call('HDEL', KEYS[1], ARGV[2])
elseif lease and string.sub(lease, 1, 5) ~= 'gone:' then
  redis.call('HSET', KEYS[1], ARGV[2], 'gone:' .. lease)
end
"""
)

# Gives what one connection holds to another of the agent. KEYS: inbox
# ARGV: group, connection, entry id, the other; returns 1 when it was the first one's.
HAND_OVER = Script(
    """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #pending == 0 or pending[1][2] ~= ARGV[2] then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, ARGV[3], 'JUSTID')
return 1
"""
)

# Gives what was held for too long without a word back. KEYS: leased
# ARGV: group, lease in ms, at most so many; returns how many entries went back.
RECLAIM = Script(
    NOW
    + MOVE
    + """
local now, moved = now(), 0
for _, stream in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)) do
  local left = 0
  if redis.call('EXISTS', stream) == 1 then
    for _, row in ipairs(
      redis.call('XPENDING', stream, ARGV[1], 'IDLE', ARGV[2], '-', '+', ARGV[3])) do
      move(stream, stream, row[1], row[4])
      moved = moved + 1
    end
    left = redis.call('XPENDING', stream, ARGV[1])[1]
  end
  if left == 0 then
    redis.call('ZREM', KEYS[1], stream)
  else
    redis.call('ZADD', KEYS[1], now + math.floor(ARGV[2] / 3), stream)
  end
end
return moved
"""
)

# Forgets mailboxes that are empty, whose agents are not connected, and whose history has expired.
# KEYS: mailboxes; ARGV: the root of all keys, cursor, how many to look at; returns the next cursor.
FORGET_MAILBOXES = Script(
    """
local page = redis.call('SSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
for _, agent in ipairs(page[2]) do
  local function key(kind) return ARGV[1] .. ':' .. kind .. ':' .. agent end
  for _, channel in ipairs(redis.call('SMEMBERS', key('attached'))) do
    -- A server that was killed took no leave.
    if redis.call('PUBSUB', 'NUMSUB', channel)[2] == 0 then
      redis.call('SREM', key('attached'), channel)
    end
  end
  local used = redis.call('SCARD', key('attached')) + redis.call('EXISTS', key('history'))
  used = used + redis.call('EXISTS', key('dead-of'))
  used = used + (tonumber(redis.call('HGET', key('figures'), 'delayed') or 0))
  local inboxes = {}
  for priority = 1, 4 do
    inboxes[priority] = key('inbox') .. ':' .. priority
    used = used + redis.call('XLEN', inboxes[priority])
  end
  if used == 0 then
    redis.call('DEL', key('figures'), key('connections'), key('wanted:inbox'), unpack(inboxes))
    redis.call('SREM', KEYS[1], agent)
  end
end
return page[1]
"""
)

# Acknowledges a message, which goes into the mailbox's history. The figures say what is not there
# any more: the latest entry that was thrown away, and when the last one came.
# KEYS: inbox, outcome, request (or outcome), history, figures
# ARGV: group, connection, entry id, outcome, its lifetime in ms or 0, event, channel or "", most
# messages in the history, its lifetime in ms
ACKNOWLEDGE = Script(
    HOLD
    + """
local most = tonumber(ARGV[8])
local found = most > 0 and redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) or {}
if #found == 1 then
  local fields = found[1][2]
  if redis.call('EXISTS', KEYS[4]) == 0 then
    -- What was there has expired, and was acknowledged before the last one was.
    local last = redis.call('HGET', KEYS[5], 'kept')
    if last then redis.call('HSET', KEYS[5], 'trimmed', last) end
  end
  for i = 1, #fields, 2 do
    if fields[i] == 'entry' then
      local id = redis.call('XADD', KEYS[4], '*',
        'entry', fields[i + 1], 'from', KEYS[1], 'id', ARGV[3])
      redis.call('HSET', KEYS[5], 'kept', id)
    end
  end
  redis.call('PEXPIRE', KEYS[4], ARGV[9])
  local over = redis.call('XLEN', KEYS[4]) - most
  if over > 0 then
    local function parts(id)
      local ms, number = string.match(id or '', '^(%d+)-(%d+)$')
      return tonumber(ms or 0), tonumber(number or 0)
    end
    local latest = redis.call('HGET', KEYS[5], 'trimmed')
    for _, old in ipairs(redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', math.min(over, 16))) do
      local ms, number = parts(old[2][6])
      local latest_ms, latest_number = parts(latest)
      if ms > latest_ms or (ms == latest_ms and number > latest_number) then latest = old[2][6] end
      redis.call('XDEL', KEYS[4], old[1])
    end
    redis.call('HSET', KEYS[5], 'trimmed', latest or '0-1')
  end
end
redis.call('HINCRBY', KEYS[5], 'acknowledged', 1)
"""
    + END
)

# Puts a message out of a mailbox's history back. KEYS: inbox, the request's progress (or inbox)
# ARGV: entry, where it stood, lifetime of the progress in ms or 0 for none, most that the request
# may put back, capacity of the mailbox
# Returns 1, 0 when the request has put it back before, -1 when it has done its most, -2 when full.
POST_AGAIN = Script(
    PLACE
    + """
local counted = tonumber(ARGV[3]) > 0
if counted then
  if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
  if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[4]) then return -1 end
end
if depth(KEYS[1]) >= tonumber(ARGV[5]) then return -2 end
place(KEYS[1], ARGV[1], 0)
if counted then
  redis.call('HSET', KEYS[2], ARGV[2], 1)
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
"""
)

# The figures of one mailbox. KEYS: connections, figures, dead_of, the inboxes of the agent…
# ARGV: group, since when there are dead letters (ms) or "" when there are none
# Returns {ms now, connections, dead letters, in flight, ms of the oldest that waits or -1, the
# counts as field and value…, what waits in each inbox…}.
FIGURES = Script(
    NOW
    + """
local waiting, held, oldest = {}, 0, -1
for i = 4, #KEYS do
  local length, pending, last = redis.call('XLEN', KEYS[i]), 0, '0-0'
  if length > 0 then
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      local facts = {}
      for j = 1, #group, 2 do facts[group[j]] = group[j + 1] end
      if facts['name'] == ARGV[1] then
        pending, last = facts['pending'], facts['last-delivered-id']
      end
    end
  end
  local more = math.max(0, length - pending)
  waiting[#waiting + 1], held = more, held + pending
  if more > 0 then
    local first = redis.call('XRANGE', KEYS[i], '(' .. last, '+', 'COUNT', 1)
    local since = first[1] and tonumber(string.match(first[1][1], '^%d+'))
    if since and (oldest < 0 or since < oldest) then oldest = since end
  end
end
local dead = ARGV[2] ~= '' and redis.call('ZCOUNT', KEYS[3], ARGV[2], '+inf') or 0
return {now(), redis.call('HLEN', KEYS[1]), dead, held, oldest,
  redis.call('HGETALL', KEYS[2]), waiting}
"""
)

# Answers a request whose sender waits for it, though the request itself was acknowledged, or was a
# direct one. KEYS: waiter, outcome; ARGV: waiter as it was found, outcome, its lifetime in ms,
# channel, event; returns 1 when somebody still waited.
ANSWER = Script(
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
"""
)

# Tells one of the servers that an agent is connected to. KEYS: attached; ARGV: notice
# Returns how many heard it, 0 or 1.
TELL = Script(
    """
for _ = 1, 16 do
  local channel = redis.call('SRANDMEMBER', KEYS[1])
  if not channel then return 0 end
  if redis.call('PUBLISH', channel, ARGV[1]) > 0 then return 1 end
  redis.call('SREM', KEYS[1], channel)
end
return 0
"""
)

# Asks to be told once of a change. KEYS: wanted; ARGV: channel, lifetime of the wish in ms
WANT = Script(
    """
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
)

__all__ = [
    "ACKNOWLEDGE",
    "ANSWER",
    "ATTACH",
    "DETACH",
    "FIGURES",
    "FORGET_MAILBOXES",
    "HAND_OVER",
    "HELD",
    "POST",
    "POST_AGAIN",
    "RECLAIM",
    "RING",
    "TAKE",
    "TELL",
    "WANT",
]
