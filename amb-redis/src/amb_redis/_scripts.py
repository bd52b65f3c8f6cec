"""What has to happen in one step runs as a script on the server.

Most scripts are about topics. A topic's keys begin with its *base*, ``prefix:{topic}:``, and end in the names of
`amb_redis._wire`: ``s`` normal and ``x`` express stream, ``r:<group>`` what a group gets again,
``d`` delayed messages by due time (ms), ``w`` a bell for those who wait, ``o:<group>`` who reads an ordered group.
They share a hash tag, so one cluster node holds them all. While a slot moves, a node runs a script here or sends it
on by whether it has the keys that the script *declares*: a base is declared by a key that is there.
"""

from __future__ import annotations

import hashlib

__all__ = [
    "ACK",
    "BIND",
    "DELAY",
    "EXTEND",
    "LEAVE",
    "LOAD",
    "READ",
    "REGISTER",
    "REQUEUE",
    "TRIM",
    "Script",
]


class Script:
    """A script and the digest the server knows it by. One about topics has their bases in BASES, and declares their
    normal streams."""

    def __init__(self, source: str, *, on_topics: bool = False) -> None:
        self.source = _BASES + source if on_topics else source
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        self._on_topics = on_topics

    def call(self, keys: list[bytes], *args: object) -> tuple[object, ...]:
        """The command that runs it, on `keys` or bases."""
        declared = [base + b"s" for base in keys] if self._on_topics else keys
        return ("EVALSHA", self.sha, len(keys), *declared, *args)


_BASES = """
local BASES = {}
for i, key in ipairs(KEYS) do BASES[i] = string.sub(key, 1, -2) end
"""

_CLOCK = """
local now_ms
local function clock()
  if not now_ms then
    local t = redis.call('TIME')
    now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return now_ms
end
local function later(base, member, due)
  local head = redis.call('ZRANGE', base .. 'd', 0, 0, 'WITHSCORES')
  redis.call('ZADD', base .. 'd', due, member)
  if not head[2] or due < tonumber(head[2]) then
    redis.call('XADD', base .. 'w', 'MAXLEN', 1, '*', 'due', due)
  end
end
"""

_OWNED = """
local function owned(key, id)
  return #redis.call('XPENDING', key, ARGV[1], id, id, 1, ARGV[2]) > 0
end
"""

# KEYS: the registry and its bell. ARGV: topics.
REGISTER = Script("""
local new = 0
for _, topic in ipairs(ARGV) do new = new + redis.call('SADD', KEYS[1], topic) end
if new > 0 then redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 'new', new) end
return new
""")

# BASES: one. ARGV: due (ms), something unique, lane, then the fields of the entry.
DELAY = Script(
    _CLOCK
    + """
later(BASES[1], cmsgpack.pack({ARGV[2], ARGV[3], unpack(ARGV, 4)}), tonumber(ARGV[1]))
return 1
""",
    on_topics=True,
)

# BASES: some. ARGV: group ('' for none), where it begins in x and in s, ms after which a consumer
# that holds nothing is forgotten. Returns the newest id of x and s, each with the entries ever added.
BIND = Script(
    """
local out = {}
for _, base in ipairs(BASES) do
  for n, lane in ipairs({'x', 's'}) do
    local key = base .. lane
    if ARGV[1] ~= '' then
      local made = redis.pcall('XGROUP', 'CREATE', key, ARGV[1], ARGV[1 + n], 'MKSTREAM')
      if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
    end
    local info = {}
    if redis.call('EXISTS', key) == 1 then
      local raw = redis.call('XINFO', 'STREAM', key)
      for i = 1, #raw, 2 do info[raw[i]] = raw[i + 1] end
    end
    out[#out + 1] = info['last-generated-id'] or '0-0'
    out[#out + 1] = info['entries-added'] or 0
  end
  if ARGV[1] ~= '' then
    local made = redis.pcall('XGROUP', 'CREATE', base .. 'r:' .. ARGV[1], ARGV[1], '0', 'MKSTREAM')
    if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
    for _, lane in ipairs({'x', 's', 'r:' .. ARGV[1]}) do
      for _, raw in ipairs(redis.call('XINFO', 'CONSUMERS', base .. lane, ARGV[1])) do
        local c = {}
        for i = 1, #raw, 2 do c[raw[i]] = raw[i + 1] end
        if c['pending'] == 0 and c['idle'] > tonumber(ARGV[4]) then
          redis.call('XGROUP', 'DELCONSUMER', base .. lane, ARGV[1], c['name'])
        end
      end
    end
  end
end
return out
""",
    on_topics=True,
)

# BASES: some. ARGV: group, consumer, limit, how many of them to take from the normal lanes first
# (-1: none at all, another command reads those), lease (ms), 1 to look for what others left, 1 for
# an ordered group, then per base the last ids of x and s (read only without a group) and 1 where an
# ordered group has to be taken over.
# Returns: [base index, lane, entries, earlier deliveries or nil] ...; per base [due in ms or -1,
# next look for leftovers in ms or -1, lock: ms until somebody else's ends or -1, 1 taken over,
# newest ids of x, s, r, entries ever added to x and s]; lanes whose group is gone.
READ = Script(
    _CLOCK
    + """
local group, consumer, left, fair = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, sweep, ordered = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == '1'
local hot = fair < 0
local limit, out, states, gone, closed = left, {}, {}, {}, {}
local again = 'r:' .. group

local function missing(i, lane, reply)
  if not string.find(reply.err, 'NOGROUP', 1, true) then error(reply) end
  gone[#gone + 1] = {i, lane}
end

local function take(i, lane, most)
  local n = math.min(left, most)
  if n <= 0 or closed[i] then return end
  local key, reply = BASES[i] .. lane, nil
  if group == '' then
    local last = ARGV[5 + 3 * i + (lane == 'x' and 0 or 1)]
    reply = redis.pcall('XREAD', 'COUNT', n, 'STREAMS', key, last)
  else
    reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', n, 'STREAMS', key, '>')
  end
  if not reply then return end
  if reply.err then return missing(i, lane, reply) end
  out[#out + 1] = {i, lane, reply[1][2]}
  left = left - #reply[1][2]
end

local function due(i)
  local key = BASES[i] .. 'd'
  local head = redis.pcall('ZRANGE', key, 0, 0, 'WITHSCORES')
  -- While a slot moves, what is not there may not be looked at.
  if head.err then return string.find(head.err, 'non local', 1, true) and -1 or error(head) end
  if head[2] and tonumber(head[2]) <= clock() then
    for _, packed in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', clock(), 'LIMIT', 0, 100)) do
      local item = cmsgpack.unpack(packed)
      redis.call('XADD', BASES[i] .. item[2], '*', unpack(item, 3))
      redis.call('ZREM', key, packed)
    end
    head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  end
  return head[2] and math.max(0, tonumber(head[2]) - clock()) or -1
end

local function claim(i, lane, idle)
  local key, from, entries, counts = BASES[i] .. lane, '-', {}, {}
  repeat
    local page = redis.pcall('XPENDING', key, group, 'IDLE', idle, from, '+', 100)
    if page.err then return missing(i, lane, page) end
    for _, p in ipairs(page) do
      from = '(' .. p[1]
      if left > 0 and (idle > 0 or p[2] ~= consumer) then
        local got = redis.call('XCLAIM', key, group, consumer, idle, p[1])
        if got[1] then
          entries[#entries + 1], counts[#counts + 1], left = got[1], p[4], left - 1
        end
      end
    end
  until #page < 100 or left <= 0
  if #entries > 0 then out[#out + 1] = {i, lane, entries, counts} end
end

local function expiry(i, lane)
  local soonest = lease
  local page = redis.pcall('XPENDING', BASES[i] .. lane, group, '-', '+', 100)
  if page.err then return soonest end
  for _, p in ipairs(page) do soonest = math.min(soonest, math.max(0, lease - p[3])) end
  -- There may be more than were looked at.
  return #page == 100 and math.min(soonest, lease / 2) or soonest
end

local function lock(i, state)
  local key = BASES[i] .. 'o:' .. group
  local owner = redis.call('GET', key)
  if owner and owner ~= consumer then
    closed[i], state[3] = true, math.max(0, redis.call('PTTL', key))
    return
  end
  redis.call('SET', key, consumer, 'PX', lease)
  if not owner or ARGV[7 + 3 * i] == '1' then
    claim(i, 'x', 0) claim(i, again, 0) claim(i, 's', 0)
    state[4] = left > 0 and 1 or 0
  end
end

for i = 1, #BASES do
  local state = {due(i), -1, -1, 1}
  states[i] = state
  if ordered then
    lock(i, state)
  elseif sweep then
    claim(i, 'x', lease) claim(i, again, lease) claim(i, 's', lease)
    state[2] = math.min(expiry(i, 'x'), expiry(i, again), expiry(i, 's'))
  end
end
if fair > 0 then
  for i = 1, #BASES do
    local room = left
    if group ~= '' then take(i, again, fair) end
    take(i, 's', fair - (room - left))
    fair = fair - (room - left)
  end
end
for i = 1, #BASES do take(i, 'x', left) end
for i = 1, #BASES do
  if group ~= '' then take(i, again, left) end
  if not hot then take(i, 's', left) end
end
if left == limit and not hot then
  for i = 1, #BASES do
    for n, lane in ipairs({'x', 's', again}) do
      local id, added = '0-0', 0
      if group == '' and redis.call('EXISTS', BASES[i] .. lane) == 1 then
        local raw = redis.call('XINFO', 'STREAM', BASES[i] .. lane)
        for j = 1, #raw, 2 do
          if raw[j] == 'entries-added' then added = raw[j + 1] end
        end
      end
      local tail = redis.call('XREVRANGE', BASES[i] .. lane, '+', '-', 'COUNT', 1)
      if tail[1] then id = tail[1][1] end
      states[i][4 + n], states[i][7 + n] = id, added
    end
  end
end
return {out, states, gone}
""",
    on_topics=True,
)

# KEYS: a stream. ARGV: group, consumer, 1 to delete, ids. Returns those that are not ours.
ACK = Script(
    _OWNED
    + """
local mine, lost = {}, {}
for i = 4, #ARGV do
  local list = owned(KEYS[1], ARGV[i]) and mine or lost
  list[#list + 1] = ARGV[i]
end
if #mine > 0 then
  redis.call('XACK', KEYS[1], ARGV[1], unpack(mine))
  if ARGV[3] == '1' then redis.call('XDEL', KEYS[1], unpack(mine)) end
end
return lost
"""
)

# BASES: one. ARGV: group, consumer, lane, id, delay (ms), next attempt, original position.
# Stores the later copy and settles the entry. Returns the id if it is not ours.
REQUEUE = Script(
    _CLOCK
    + _OWNED
    + """
local base, group, lane, id, delay = BASES[1], ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
local again, key = 'r:' .. group, BASES[1] .. lane
if not owned(key, id) then return {id} end
local entry = redis.call('XRANGE', key, id, id)[1]
if entry then
  local fields, n = entry[2], #entry[2]
  if lane == again then n = n - 4 end
  local copy = {unpack(fields, 1, n)}
  for _, v in ipairs({'attempt', ARGV[6], 'position', ARGV[7]}) do copy[#copy + 1] = v end
  if delay > 0 then
    later(base, cmsgpack.pack({lane .. id, again, unpack(copy)}), clock() + delay)
  else
    redis.call('XADD', base .. again, '*', unpack(copy))
  end
end
redis.call('XACK', key, group, id)
if lane == again then redis.call('XDEL', key, id) end
return {}
""",
    on_topics=True,
)

# BASES: one. ARGV: group, consumer, lease (ms), then lane and id in turns. Returns lost pairs.
EXTEND = Script(
    _OWNED
    + """
local lost, lock = {}, BASES[1] .. 'o:' .. ARGV[1]
for i = 4, #ARGV, 2 do
  local key, id = BASES[1] .. ARGV[i], ARGV[i + 1]
  if owned(key, id) then
    redis.call('XCLAIM', key, ARGV[1], ARGV[2], 0, id, 'JUSTID')
  else
    lost[#lost + 1], lost[#lost + 2] = ARGV[i], id
  end
end
if redis.pcall('GET', lock) == ARGV[2] then redis.call('PEXPIRE', lock, ARGV[3]) end
return lost
""",
    on_topics=True,
)

# BASES: some. ARGV: group, consumer. Forgets the consumer where it holds nothing.
LEAVE = Script(
    """
for _, base in ipairs(BASES) do
  for _, lane in ipairs({'x', 's', 'r:' .. ARGV[1]}) do
    local held = redis.pcall('XPENDING', base .. lane, ARGV[1], '-', '+', 1, ARGV[2])
    if not held.err and #held == 0 then
      redis.pcall('XGROUP', 'DELCONSUMER', base .. lane, ARGV[1], ARGV[2])
    end
  end
  if redis.pcall('GET', base .. 'o:' .. ARGV[1]) == ARGV[2] then
    redis.call('DEL', base .. 'o:' .. ARGV[1])
    redis.call('XADD', base .. 'w', 'MAXLEN', 1, '*', 'free', 1)
  end
end
return 1
""",
    on_topics=True,
)

# KEYS: a stream. ARGV: the cap, then groups that have a claim on it. Returns the length and the
# group that needs more than the cap, if any.
TRIM = Script("""
local key, cap = KEYS[1], tonumber(ARGV[1])
local length = redis.call('XLEN', key)
if length <= cap then return {length, ''} end
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1][1]
local function before(a, b)
  local am, as = string.match(a, '(%d+)-(%d+)')
  local bm, bs = string.match(b, '(%d+)-(%d+)')
  if am ~= bm then return tonumber(am) < tonumber(bm) end
  return tonumber(as) < tonumber(bs)
end
local needed, holder, seen = nil, '', {}
for _, raw in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local g = {}
  for i = 1, #raw, 2 do g[raw[i]] = raw[i + 1] end
  seen[g['name']] = true
  local from = nil
  if g['last-delivered-id'] ~= last and before(g['last-delivered-id'], last) then from = g['last-delivered-id'] end
  if g['pending'] > 0 then from = redis.call('XPENDING', key, g['name'])[2] end
  if from and (not needed or before(from, needed)) then needed, holder = from, g['name'] end
end
for i = 2, #ARGV do
  if not seen[ARGV[i]] then return {length, ARGV[i]} end
end
if not needed then
  redis.call('XTRIM', key, 'MAXLEN', cap)
else
  redis.call('XTRIM', key, 'MINID', '~', needed, 'LIMIT', length - cap)
end
return {redis.call('XLEN', key), holder}
""")

#: Teaches a server those that run often.
LOAD = [("SCRIPT", "LOAD", s.source) for s in (REGISTER, DELAY, BIND, READ, ACK, REQUEUE, EXTEND, LEAVE, TRIM)]
