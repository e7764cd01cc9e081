"""What is asked about tasks, as Lua scripts that change no task."""

from __future__ import annotations

from bxmesh.server.streams.scripts import Script
from bxmesh.server.tasks.scripts import BASE

# ARGV: …, id, revision or -1, channel that wants to know of the next change or "", lifetime of that
# wish in ms
# Returns {} no such task | {task, revision of the oldest change kept, changes after the revision}.
READ = Script(
    BASE
    + """
local id, after = ARGV[2], tonumber(ARGV[3])
local live = find(id)
if not live then return {} end
if ARGV[4] ~= '' and live.state < COMPLETED then
  redis.call('SADD', ROOT .. ':wanted:task:' .. id, ARGV[4])
  redis.call('PEXPIRE', ROOT .. ':wanted:task:' .. id, ARGV[5])
end
local changes, oldest = {}, live.rev
if after >= 0 then
  local first = redis.call('XRANGE', events(id), '-', '+', 'COUNT', 1)[1]
  if first then oldest = tonumber(string.match(first[1], '^%d+')) end
  for _, entry in ipairs(redis.call('XRANGE', events(id), '(' .. ARGV[3] .. '-0', '+')) do
    changes[#changes + 1] = cmsgpack.unpack(entry[2][2])
  end
end
return {whole(id, live), oldest, changes}
"""
)

# What a child must know of its parent. ARGV: …, id
# Returns {} | {depth, line of agents as JSON, owner, identity that has it, public}.
LINE = Script(
    BASE
    + """
local live = find(ARGV[2])
if not live then return {} end
local line = live.line
if live.state ~= PENDING and live.agent ~= '' then line[#line + 1] = live.agent end
if #line == 0 then return {live.depth, '[]', live.owner, live.who, live.public and 1 or 0} end
return {live.depth, cjson.encode(line), live.owner, live.who, live.public and 1 or 0}
"""
)

# The demands for which something waits, and how much agents have.
# ARGV: …, channel that wants to know when to look again, lifetime of that wish in ms
# Returns {demand, what it is as JSON, …}, {holder, tasks, …}.
OVERVIEW = Script(
    BASE
    + """
redis.call('SADD', ROOT .. ':wanted:' .. SLOTS, ARGV[2])
redis.call('PEXPIRE', ROOT .. ':wanted:' .. SLOTS, ARGV[3])
local demands = redis.call('HGETALL', DEMANDS)
return {demands, #demands > 0 and redis.call('HGETALL', LOAD) or {}}
"""
)

# The first that wait. ARGV: …, then demand and at most so many, …
# Returns for each {demand, id, score, attempts, priority, sticky key, trace, owner}.
FIRST = Script(
    BASE
    + """
local found = {}
for i = 2, #ARGV, 2 do
  local demand = ARGV[i]
  local rows = redis.call('ZRANGE', queue(demand), 0, ARGV[i + 1] - 1, 'WITHSCORES')
  for j = 1, #rows, 2 do
    local id = rows[j]
    local live = find(id)
    if live then
      found[#found + 1] = {demand, id, tonumber(rows[j + 1]), live.attempts, live.priority,
        live.sticky, live.trace, live.owner}
    else
      redis.call('ZREM', queue(demand), id)
    end
  end
  if redis.call('EXISTS', queue(demand)) == 0 then redis.call('HDEL', DEMANDS, demand) end
end
return found
"""
)

# A part of a list, newest first. ARGV: …, parent or "", before (us) or "+inf", not before (us),
# filter as JSON, at most so many, at most so many bytes, at most so many looked at
# Returns {1 when that was all, create time of the last one looked at, tasks}.
PAGE = Script(
    BASE
    + """
local index = ARGV[2] == '' and TASKS or children(ARGV[2])
local filter, found, bytes = cjson.decode(ARGV[5]), {}, 0
local rows = redis.call('ZREVRANGEBYSCORE', index, '(' .. ARGV[3], ARGV[4], 'WITHSCORES',
  'LIMIT', 0, ARGV[8])
local states
for _, state in ipairs(filter.states) do
  states = states or {}
  states[state] = true
end
local function fits(live)
  return (not states or states[live.state])
    and (filter.type == '' or live.type == filter.type)
    and (filter.agent == '' or (live.agent == filter.agent and live.state ~= PENDING))
    and (filter.identity == '' or live.public or live.owner == filter.identity
      or live.who == filter.identity
      or (live.team and live.team ~= '' and live.team == filter.team))
end
local last = 0
for i = 1, #rows, 2 do
  local id = rows[i]
  local live = find(id)
  if live and fits(live) then
    local task = whole(id, live)
    local size = #task[1] + #task[2] + 40 * #task[3] + 256
    if #found > 0 and bytes + size > tonumber(ARGV[7]) then return {0, last, found} end
    bytes = bytes + size
    found[#found + 1] = task
  end
  last = tonumber(rows[i + 1])
  if #found >= tonumber(ARGV[6]) and i + 1 < #rows then return {0, last, found} end
end
return {#rows < 2 * ARGV[8] and 1 or 0, last, found}
"""
)

# A page of what was assigned on behalf of a task. ARGV: …, id, after (us), at most so many
# Returns {id, create time, …}.
CHILDREN = Script(
    BASE
    + """
return redis.call('ZRANGEBYSCORE', children(ARGV[2]), '(' .. ARGV[3], '+inf', 'WITHSCORES',
  'LIMIT', 0, ARGV[4])
"""
)

# Returns {counts, load, since}, each as {name, value, …}, and now in us.
FIGURES = Script(
    BASE
    + """
return {redis.call('HGETALL', COUNTS), redis.call('HGETALL', LOAD), redis.call('HGETALL', SINCE), NOW}
"""
)
