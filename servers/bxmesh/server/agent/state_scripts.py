"""The steps on states that must be atomic, as Lua scripts.

A state is a hash: `revision`, `record` (a serialised AgentState) and `owner` (the identity that may
change it while the agent is away).
"""

from __future__ import annotations

from bxmesh.server.streams.scripts import RING, Script

# KEYS: state, answers, request (or state)
# ARGV: the revision that it is based on, record, owner, root, topic, lifetime of a request in ms or
# 0, most answers, their lifetime in ms
# Returns {1} | {0, the answer of the first time} for a repeated request | {-1} when it is another
# revision by now.
STORE = Script(
    RING
    + """
local remember = tonumber(ARGV[6]) > 0
if remember then
  local revision = redis.call('GET', KEYS[3])
  if revision then
    local first = redis.call('XRANGE', KEYS[2], revision .. '-0', revision .. '-0')
    return {0, #first == 1 and first[1][2][2] or redis.call('HGET', KEYS[1], 'record') or ''}
  end
end
if (redis.call('HGET', KEYS[1], 'revision') or '0') ~= ARGV[1] then return {-1} end
local revision = string.format('%.0f', ARGV[1] + 1)
redis.call('HSET', KEYS[1], 'revision', revision, 'record', ARGV[2], 'owner', ARGV[3])
if remember then
  redis.call('SET', KEYS[3], revision, 'PX', ARGV[6])
  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[7], revision .. '-0', 'record', ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
end
ring(ARGV[4], ARGV[5])
return {1}
"""
)
