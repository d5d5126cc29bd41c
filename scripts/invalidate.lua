-- invalidate.lua: ends a session for good by putting a tombstone in its place.
--
-- KEYS[1]  key of the session
-- ARGV[1]  field t of the tombstone: kind, flags, reason and time; or, where RESTORE may be used, the
--          tombstone as DUMP would give it, with that from byte 6 on. Any other reason takes the
--          place of 2, rotated, which is a renewal's
-- ARGV[2]  tombstone TTL, ms
-- ARGV[3]  condition: "" or left out none, "live", or the version that must be stored
-- ARGV[4]  claim of a renewal, 8 bytes; "" or left out for none. It also takes over from a renewal that
--          was given up
-- ARGV[5]  channel to which the key is published if a session, or a renewal, is ended now; left out for
--          none
--
-- Returns  D header         ended, or taken over, now or by an earlier run with this claim; the header of a
--                           session that is ended now, if that has items, or nothing
--          A                absent; with no condition it has a tombstone, too
--          E end successor  ended before; the successor's key without its prefix, or nothing
--          C                another version is stored
--          F                the key holds something else
local floor = math.floor
local function clock() -- ms since 1970
  local time = redis.call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end
local function number(s, at) -- the six bytes of s from at on
  local a, b, c, d, e, f = string.byte(s, at, at + 5)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
end
local function wrongtype(reply) return string.find(reply.err, '^%-?WRONGTYPE') end
local function refusal(reply) -- what to say of a key whose string cannot be read
  if not wrongtype(reply) then return reply end
  local t = redis.pcall('HGET', KEYS[1], 't')
  if type(t) == 'table' then return wrongtype(t) and 'F' or t end
  if not t or #t < 9 or string.byte(t) ~= 192 or string.byte(t, 2) > 127 then return 'F' end
  return 'E' .. t
end
local function header(head) -- all before the data of the record that begins with head; nil: foreign
  local kind, flags, high, low = string.byte(head, 1), string.byte(head, 2), string.byte(head, 23, 24)
  if #head < 22 or kind ~= 193 or flags > 127 and floor(flags / 16) ~= 9 then return nil end
  if flags % 2 == 0 then return string.sub(head, 1, 22) end
  local all = low and redis.call('GETRANGE', KEYS[1], '0', 23 + high * 256 + low)
  return all and #all == 24 + high * 256 + low and all or nil
end

local function publish() -- when the session has been ended, and whether it is permitted or not
  if ARGV[5] then redis.pcall('PUBLISH', ARGV[5], KEYS[1]) end
end

local head, dump, t = redis.pcall('GETRANGE', KEYS[1], '0', '23'), #ARGV[1] > 9, ARGV[1]
local condition, claim = ARGV[3] or '', ARGV[4] ~= '' and ARGV[4]
if dump then t = string.sub(t, 6, 14) end
if type(head) == 'table' then
  local met = refusal(head)
  if type(met) == 'table' or string.byte(met) ~= 69 then return met end
  if claim and redis.call('HGET', KEYS[1], 'c') == claim then return 'D' end
  -- Written again although it stands, or a WAIT that follows would be acknowledged at once. PEXPIRE
  -- comes first: at maxmemory HSET is refused unless the script has written before.
  local left = redis.call('PTTL', KEYS[1])
  redis.call('PEXPIRE', KEYS[1], math.max(ARGV[2], left))
  -- A header without a claim or a successor is that of a renewal that was given up. As long as the
  -- session would have lived, its tombstone has more than the tombstone TTL to live. After five
  -- minutes no request is left that could take over, and a list of sessions passes over it.
  if claim and left > tonumber(ARGV[2]) and math.abs(clock() - number(met, 5)) < 300000 then
    local found = redis.call('HMGET', KEYS[1], 'h', 'c', 's')
    if found[1] and not found[2] and not found[3] then
      if #condition == 8 and condition ~= string.sub(found[1], 3, 10) then return 'C' end
      redis.call('HSET', KEYS[1], 'c', claim)
      return 'D'
    end
  end
  local stands, reason = string.sub(met, 2), string.byte(t, 3)
  if reason ~= 2 then
    redis.call('HDEL', KEYS[1], 'c', 'h') -- no renewal can be finished, or taken over
    if string.byte(stands, 3) == 2 then
      stands = string.sub(stands, 1, 2) .. string.sub(t, 3) .. string.sub(stands, 10)
    end
  end
  redis.call('HSET', KEYS[1], 't', stands)
  if stands ~= string.sub(met, 2) then publish() end
  return string.sub(met, 1, 10) .. (redis.call('HGET', KEYS[1], 's') or '')
end

local live = head ~= ''
local record = live and header(head)
if live and not record then return 'F' end
if condition ~= '' then
  local deadline = live and number(head, 17) or 0
  if not live or (deadline > 0 and deadline <= clock()) then return 'A' end
  if #condition == 8 and condition ~= string.sub(head, 3, 10) then return 'C' end
end
local keep = ARGV[2] + (live and math.max(redis.call('PTTL', KEYS[1]), 0) or 0)

-- RESTORE puts the hash in place of the string in one step, TTL included. Without it HSET is tried first,
-- which proves that it is permitted; only what that says of a string, or of a full memory, is a reason for
-- DEL, because what follows could be refused: a key that is deleted while its slot of a cluster moves
-- belongs to the other node. At maxmemory a script may go on whose first write needs no memory.
local function full(reply) return reply.err and string.find(reply.err, '^%-?OOM') end
if dump then
  local put = redis.pcall('RESTORE', KEYS[1], keep, ARGV[1], 'REPLACE')
  if full(put) then
    redis.call('PEXPIRE', KEYS[1], keep, 'LT') -- changes nothing
    put = redis.pcall('RESTORE', KEYS[1], keep, ARGV[1], 'REPLACE')
  end
  if put.err then return put end
else
  local set = redis.pcall('HSET', KEYS[1], 't', t)
  if type(set) == 'table' then
    if not wrongtype(set) and not full(set) then return set end
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 't', t)
  end
  redis.call('PEXPIRE', KEYS[1], keep)
end
if claim then redis.call('HSET', KEYS[1], 'c', claim, 'h', record) else publish() end
return live and 'D' .. (#record > 22 and record or '') or 'A'
