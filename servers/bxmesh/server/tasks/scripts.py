"""The transitions of tasks, each one atomic, as Lua scripts.

A task is a hash: `head` (a serialised Task with what never changes), `live` (packed: what does) and
`result`. Times are in microseconds. Beside the tasks there are

    tasks             all, by create time, which is different for each
    task-queue:…      what waits, by demand: in the order of create time less a bonus by priority
    task-demands      the demands for which something waits
    task-held:…       what an agent has, by holder: an agent under one registration
    task-load         how much that is; task-since: the sum of the times (ms) at which it got it
    task-due          when to look at a task next: a retry, a timeout
    task-counts       tasks that have not ended, by state and type
    task-open:…       tasks that have not ended, by owner
    task-ended        what is to be forgotten, by time
    task-events:…     the changes of one task; the id of an entry is `<revision>-0`
    task-children:…   what was assigned on behalf of a task
    task-spans        a stream of what agents and tasks were busy with
    journal           a stream of what state tasks came into, for activity logs while there are any

What is refused for lack of memory is refused as a whole: the first command that a script writes
with asks for memory, unless it only takes something away.
"""

from __future__ import annotations

from bxmesh.agent.v1 import task_pb2 as pb
from bxmesh.server.streams.keys import GROUP
from bxmesh.server.streams.scripts import PLACE, Script
from bxmesh.server.tasks.keys import SLOTS_TOPIC

# A withdrawn delivery is remembered for so long by those who hold it.
_WITHDRAWN_MS = 3_600_000

# KEYS: root; ARGV: options as JSON, …
_BASE = (
    PLACE
    + f"""
local PENDING, ASSIGNED, RUNNING = {pb.TASK_STATE_PENDING}, {pb.TASK_STATE_ASSIGNED}, {pb.TASK_STATE_RUNNING}
local COMPLETED, FAILED = {pb.TASK_STATE_COMPLETED}, {pb.TASK_STATE_FAILED}
local CANCELLED, TIMED_OUT = {pb.TASK_STATE_CANCELLED}, {pb.TASK_STATE_TIMED_OUT}
local GROUP, SLOTS, WITHDRAWN_MS = '{GROUP}', '{SLOTS_TOPIC}', {_WITHDRAWN_MS}
"""
    + """
local ROOT, options = KEYS[1], cjson.decode(ARGV[1])
local TASKS, ENDED, DUE = ROOT .. ':tasks', ROOT .. ':task-ended', ROOT .. ':task-due'
local COUNTS, DEMANDS = ROOT .. ':task-counts', ROOT .. ':task-demands'
local LOAD, SINCE, SPANS = ROOT .. ':task-load', ROOT .. ':task-since', ROOT .. ':task-spans'
local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]

local function int(number) return string.format('%.0f', number) end
local function record(id) return ROOT .. ':task:' .. id end
local function events(id) return ROOT .. ':task-events:' .. id end
local function children(id) return ROOT .. ':task-children:' .. id end
local function queue(demand) return ROOT .. ':task-queue:' .. demand end
local function held(holder) return ROOT .. ':task-held:' .. holder end
local function open_of(owner) return ROOT .. ':task-open:' .. owner end

local function find(id)
  local packed = redis.call('HGET', record(id), 'live')
  return packed and cmsgpack.unpack(packed)
end
local function view(live)
  return {live.rev, live.state, live.state == PENDING and '' or live.agent, live.attempts,
    live.progress, live.told, live.error, live.created, live.updated, live.started, live.ended,
    live.expires, live.depth, live.who}
end
local function whole(id, live)
  local values = redis.call('HMGET', record(id), 'head', 'result')
  return {values[1] or '', values[2] or '', redis.call('ZRANGE', children(id), 0, 999), view(live)}
end
local function tell(id, live, reason)
  redis.call('XADD', ROOT .. ':journal', 'NOMKSTREAM', 'MAXLEN', '~', 50000, '*', 'task', id,
    'type', live.type, 'state', int(live.state), 'owner', live.owner, 'parent', live.parent,
    'priority', int(live.priority), 'agent', live.state == PENDING and '' or live.agent,
    'attempt', int(live.attempts), 'revision', int(live.rev), 'created', int(live.created),
    'time', int(NOW), 'reason', string.sub(reason or '', 1, 64))
  live.told_state = live.state
end
local function change(id, live, reason)
  live.rev, live.updated = live.rev + 1, NOW
  if live.told_state ~= live.state then tell(id, live, reason) end
  redis.call('HSET', record(id), 'live', cmsgpack.pack(live))
  redis.call('XADD', events(id), 'MAXLEN', options.most_events, int(live.rev) .. '-0',
    'view', cmsgpack.pack(view(live)))
  ring(ROOT, 'task:' .. id)
end

local function add(key, field, more)
  local count = redis.call('HINCRBY', key, field, more)
  if count <= 0 then redis.call('HDEL', key, field) end
  return count
end
local function enter(live, state)
  if state < COMPLETED then add(COUNTS, int(state) .. ':' .. live.type, 1) end
  if live.state > 0 and live.state < COMPLETED then
    add(COUNTS, int(live.state) .. ':' .. live.type, -1)
  end
  live.state = state
end

local function wait(id, live)
  redis.call('ZADD', queue(live.demand), live.created - live.bonus, id)
  redis.call('HSET', DEMANDS, live.demand, live.wanted)
  redis.call('ZADD', DUE, live.deadline > 0 and live.deadline or live.created + options.patience, id)
  live.delayed = false
  ring(ROOT, SLOTS)
end
local function unqueue(id, live)
  local queue = queue(live.demand)
  if redis.call('ZREM', queue, id) == 1 and redis.call('EXISTS', queue) == 0 then
    redis.call('HDEL', DEMANDS, live.demand)
  end
end

local function used(holder)
  return tonumber(redis.call('HGET', LOAD, holder) or 0)
end
-- The first that has a free slot, or the less loaded of the first two.
local function pick(candidates, in_order)
  local best
  for _, candidate in ipairs(candidates) do
    local used = used(candidate.holder)
    if used < candidate.slots then
      candidate.load = math.max(candidate.load, used / candidate.slots)
      if in_order then return candidate end
      if best then return candidate.load < best.load and candidate or best end
      best = candidate
    end
  end
  return best
end
local function give(id, live, to, entry)
  live.stream = to.inbox .. int(live.priority)
  live.entry = place(live.stream, entry, 0)
  live.assigned = NOW
  redis.call('SADD', held(to.holder), id)
  redis.call('HINCRBY', LOAD, to.holder, 1)
  redis.call('HINCRBY', SINCE, to.holder, int(math.floor(NOW / 1000)))
  live.agent, live.holder, live.who, live.slots = to.agent, to.holder, to.identity, to.slots
  live.attempts, live.lost, live.progress, live.told = live.attempts + 1, false, '', 0
  if live.deadline == 0 then
    live.deadline = NOW + (live.timeout > 0 and live.timeout or to.timeout)
  end
  redis.call('ZADD', DUE, live.deadline, id)
  enter(live, ASSIGNED)
end
-- The attempts that this script ends: {agent, task, attempt, what was demanded, 1 when it succeeded,
-- -1 when it failed, 0 for neither}.
local ended = {}
local function let_go(id, live, state, unseen)
  redis.call('XADD', SPANS, 'MAXLEN', '~', options.most_spans, '*', 'type', live.type,
    'state', state, 'agent', live.holder ~= '' and live.agent or '', 'slots', live.slots,
    'created', live.created, 'assigned', live.holder ~= '' and live.assigned or 0)
  if live.holder == '' then return end
  local how = (state == COMPLETED and 1) or ((state == CANCELLED or unseen) and 0) or -1
  ended[#ended + 1] = {live.agent, id, live.attempts, live.wanted, how}
  if redis.call('SREM', held(live.holder), id) == 1 then
    redis.call('HINCRBY', SINCE, live.holder, int(-math.floor(live.assigned / 1000)))
    if add(LOAD, live.holder, -1) <= 0 then redis.call('HDEL', SINCE, live.holder) end
  end
  live.holder = ''
  if redis.call('EXISTS', DEMANDS) == 1 then ring(ROOT, SLOTS) end
end
local function field(number, bytes)
  local length, head = #bytes, string.char(number * 8 + 2)
  repeat
    local low = length % 128
    length = (length - low) / 128
    head = head .. string.char(length > 0 and low + 128 or low)
  until length == 0
  return head .. bytes
end
-- Takes a delivery back, or tells those who hold it: a WorkOutcome and a Notice, with a Status.
-- Returns whether nobody had taken it.
local function withdraw(id, live, status)
  if live.holder == '' then return false end
  local taken = redis.pcall('XPENDING', live.stream, GROUP, live.entry, live.entry, 1)
  if not taken.err and #taken == 0 and redis.call('XDEL', live.stream, live.entry) == 1 then
    return true
  end
  local item = id .. ':' .. int(live.attempts)
  redis.call('SET', ROOT .. ':outcome:' .. item, field(1, item) .. field(2, status),
    'PX', WITHDRAWN_MS)
  local notice = field(3, field(1, live.agent) .. field(2, item) .. field(3, status))
  for _, channel in ipairs(redis.call('SMEMBERS', ROOT .. ':attached:' .. live.agent)) do
    redis.call('PUBLISH', channel, notice)
  end
  return false
end

local function finish(id, live, state, err, reason, unseen)
  if live.state == PENDING then unqueue(id, live) end
  let_go(id, live, state, unseen)
  redis.call('ZREM', DUE, id)
  redis.call('SREM', open_of(live.owner), id)
  enter(live, state)
  live.error, live.ended, live.expires = err, NOW, NOW + options.lifetime
  change(id, live, reason)
  local ms = int(math.ceil(options.lifetime / 1000))
  redis.call('PEXPIRE', record(id), ms)
  redis.call('PEXPIRE', events(id), ms)
  redis.call('PEXPIRE', children(id), ms)
  redis.call('ZADD', ENDED, live.expires, id)
end
-- An attempt is over without a result: another one follows, or none.
local function fail(id, live, err, reason, jitter, unseen, hopeless)
  local over = hopeless or live.attempts - live.spared >= live.limit
  for _, final in ipairs(live.final) do over = over or final == reason end
  if over then return finish(id, live, FAILED, err, reason, unseen) end
  let_go(id, live, 0, unseen)
  live.error = err
  enter(live, PENDING)
  local delay = jitter * math.min(live.most_backoff, live.backoff * 2 ^ (live.attempts - 1))
  if delay >= 1000 then
    live.delayed = true
    redis.call('ZADD', DUE, math.min(NOW + math.floor(delay), live.deadline), id)
  else
    wait(id, live)
  end
  change(id, live, reason)
end
"""
)

# A task begins. It is given to the first candidate with a free slot, unless others wait for agents
# that could be its.
# KEYS: root, request (or root)
# ARGV: …, id, head, what else is to be known as JSON, entry for its first agent, lifetime of the
# request in ms or 0
# Returns {1, task} | {0, id of the first task of the request, that task} | {-1, tasks} too many
# | {-2} no such parent | {-3, state} the parent has ended | {-4, tasks} as many as the owner may have.
CREATE = Script(
    _BASE
    + """
local id, new, remember = ARGV[2], cjson.decode(ARGV[4]), tonumber(ARGV[6])
if remember > 0 then
  local first = redis.call('GET', KEYS[2])
  local live = first and find(first)
  if live then return {0, first, whole(first, live)} end
end
local open = redis.call('ZCARD', TASKS) - redis.call('ZCARD', ENDED)
if open >= options.most_open then return {-1, open} end
if redis.call('HLEN', DEMANDS) >= options.most_demands
  and redis.call('HEXISTS', DEMANDS, new.demand) == 0 then
  return {-1, open}
end
local own = redis.call('SCARD', open_of(new.owner))
if new.most > 0 and own >= new.most then return {-4, own} end
if new.parent ~= '' then
  local parent = find(new.parent)
  if not parent then return {-2} end
  if parent.state >= COMPLETED then return {-3, parent.state} end
end
local last = redis.call('ZRANGE', TASKS, -1, -1, 'WITHSCORES')
local created = math.max(NOW, (tonumber(last[2]) or 0) + 1)
local live = {
  rev = 0, state = 0, agent = '', holder = '', who = '', slots = 0, attempts = 0, progress = '',
  told = 0, error = '', created = created, updated = created, started = 0, assigned = 0, ended = 0,
  expires = 0, deadline = 0, spared = 0, lost = false, delayed = false, stream = '', entry = '',
  demand = new.demand, wanted = new.wanted, bonus = new.bonus, priority = new.priority,
  sticky = new.sticky, type = new.type, owner = new.owner, public = new.public,
  team = new.team,
  limit = new.limit, backoff = new.backoff, most_backoff = new.most_backoff, final = new.final,
  timeout = new.timeout, parent = new.parent, depth = new.depth, line = new.line,
  trace = new.trace,
}
redis.call('HSET', record(id), 'head', ARGV[3])
redis.call('ZADD', TASKS, created, id)
redis.call('SADD', open_of(new.owner), id)
if new.parent ~= '' then redis.call('ZADD', children(new.parent), created, id) end
if remember > 0 then redis.call('SET', KEYS[2], id, 'PX', remember) end
local waiting = redis.call('HLEN', DEMANDS)
for _, demand in ipairs(waiting > 0 and new.unmet or {}) do
  waiting = waiting - redis.call('HEXISTS', DEMANDS, demand)
end
local to = waiting == 0 and pick(new.candidates, new.sticky ~= '')
if to then
  give(id, live, to, ARGV[5])
else
  enter(live, PENDING)
  wait(id, live)
end
change(id, live)
return {1, whole(id, live)}
"""
)

# ARGV: …, id, attempts so far, entry, candidates as JSON
# Returns 1, or 0 when it no longer waits for that attempt, -1 when the candidates are full.
ASSIGN = Script(
    _BASE
    + """
local id = ARGV[2]
local live = find(id)
if not live or live.state ~= PENDING or live.delayed or live.attempts ~= tonumber(ARGV[3]) then
  return 0
end
local to = pick(cjson.decode(ARGV[5]), true)
if not to then return -1 end
give(id, live, to, ARGV[4])
unqueue(id, live)
change(id, live)
return 1
"""
)

# What an agent says of its attempt.
# ARGV: …, id, attempt or 0 when the delivery says it, agent or "" for any, identity or "" for any,
# kind, payload, reason of the error, a random number from 0 to 1, delivery or "", 1 for the whole
# task
# Returns {1, task, or what changes about it, attempts that this ended} | {0} no such task | {-1} the
# attempt is not this
# agent's, or no longer.
REPORT = Script(
    _BASE
    + """
local id, kind, payload = ARGV[2], ARGV[6], ARGV[7]
local live = find(id)
if not live then return {0} end
-- What an inbox delivers again is a later entry of it; an earlier one was of another attempt.
local function delivered(by)
  if by == '' then return live.attempts == tonumber(ARGV[3]) end
  local inbox, ms, seq = string.match(by, '^(%d):(%d+)-(%d+)$')
  if not inbox or inbox ~= string.sub(live.stream, -1) then return false end
  local first_ms, first_seq = string.match(live.entry, '^(%d+)-(%d+)$')
  ms, first_ms = tonumber(ms), tonumber(first_ms)
  return ms > first_ms or (ms == first_ms and tonumber(seq) >= tonumber(first_seq))
end
if live.attempts == 0 or live.lost or not delivered(ARGV[10])
  or (ARGV[4] ~= '' and live.agent ~= ARGV[4]) or (ARGV[5] ~= '' and live.who ~= ARGV[5]) then
  return {-1}
end
-- Otherwise the report is repeated, or comes too late.
if live.holder ~= '' then
  if live.started == 0 then live.started = NOW end
  if kind == 'left' then
    return {-1}
  elseif kind == 'progress' then
    if live.state == ASSIGNED then enter(live, RUNNING) end
    live.progress, live.told = payload, NOW
    change(id, live)
  elseif kind == 'result' then
    redis.call('HSET', record(id), 'result', payload)
    finish(id, live, COMPLETED, '')
  else
    fail(id, live, payload, ARGV[8], tonumber(ARGV[9]), nil, kind == 'hopeless')
  end
elseif kind == 'left' and (live.state == CANCELLED or live.state == TIMED_OUT)
  and redis.call('HSETNX', record(id), 'result', payload) == 1 then
  change(id, live)
end
return {1, ARGV[11] == '1' and whole(id, live) or view(live), ended}
"""
)

# ARGV: …, id, error; returns {1, task, attempts that this ended} | {2, task} when it had ended
# | {0} no such task.
CANCEL = Script(
    _BASE
    + """
local id = ARGV[2]
local live = find(id)
if not live then return {0} end
if live.state >= COMPLETED then return {2, whole(id, live)} end
withdraw(id, live, ARGV[3])
finish(id, live, CANCELLED, ARGV[3])
return {1, whole(id, live), ended}
"""
)

# Takes what an agent has from it, as it is gone. ARGV: …, holder, error, at most so many; returns
# {how many, attempts that this ended}.
RELEASE = Script(
    _BASE
    + """
local holder = ARGV[2]
local ids = redis.call('SRANDMEMBER', held(holder), ARGV[4])
for _, id in ipairs(ids) do
  local live = find(id)
  if live and live.holder == holder then
    -- What the agent never saw was no attempt that could use up the task's.
    local unseen = withdraw(id, live, ARGV[3])
    if unseen then live.spared = live.spared + 1 end
    live.lost = true
    fail(id, live, ARGV[3], 'AGENT_LOST', 0, unseen)
  else
    redis.call('SREM', held(holder), id)
  end
end
if redis.call('EXISTS', held(holder)) == 0 then
  redis.call('HDEL', LOAD, holder)
  redis.call('HDEL', SINCE, holder)
end
return {#ids, ended}
"""
)

# Forgets what has been kept for long enough, or is more than is kept. ARGV: …, at most so many
# Returns how many.
FORGET = Script(
    _BASE
    + """
local function forget(id)
  local live = find(id)
  if live and live.parent ~= '' then redis.call('ZREM', children(live.parent), id) end
  redis.call('DEL', record(id), events(id), children(id))
  redis.call('ZREM', TASKS, id)
  redis.call('ZREM', ENDED, id)
end
local most = tonumber(ARGV[2])
local over = redis.call('ZCARD', ENDED) - options.most_ended
local old = over > 0 and redis.call('ZRANGE', ENDED, 0, math.min(over, most) - 1)
  or redis.call('ZRANGEBYSCORE', ENDED, '-inf', NOW, 'LIMIT', 0, most)
for _, id in ipairs(old) do forget(id) end
return #old
"""
)

# Looks at what is due. ARGV: …, at most so many, error of a timeout, error of a task that no agent
# came for; returns {looked at, us until the next or -1, attempts that this ended}.
LOOK = Script(
    _BASE
    + """
local answer = {0, -1, ended}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', NOW, 'LIMIT', 0, ARGV[2])) do
  answer[1] = answer[1] + 1
  local live = find(id)
  if not live then
    redis.call('ZREM', DUE, id)
  elseif live.deadline > 0 and live.deadline <= NOW then
    withdraw(id, live, ARGV[3])
    finish(id, live, TIMED_OUT, ARGV[3], 'TASK_TIMED_OUT')
  elseif live.delayed then
    wait(id, live)
    redis.call('HSET', record(id), 'live', cmsgpack.pack(live))
  elseif live.deadline > 0 then
    redis.call('ZADD', DUE, live.deadline, id)
  else
    finish(id, live, TIMED_OUT, ARGV[4], 'NO_AGENT_CAME')
  end
end
local next = redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
if next[2] then answer[2] = math.max(0, tonumber(next[2]) - NOW) end
return answer
"""
)

__all__ = ["ASSIGN", "BASE", "CANCEL", "CREATE", "FORGET", "LOOK", "RELEASE", "REPORT"]

BASE = _BASE
