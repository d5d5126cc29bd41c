-- rotate.lua: moves a live session to a new id and ends the old one.
--
-- KEYS[1]  key of the old id
-- KEYS[2]  key of the new id; left out in a cluster, where the caller stores the returned record
-- ARGV[1]  version of the new record, 8 bytes that no other write has used
-- ARGV[2]  tombstone TTL, ms
-- ARGV[3]  successor: key of the new id without the prefix
-- ARGV[4]  version that must be stored under the old id; "" for any
-- ARGV[5]  field t of the tombstone; or, where RESTORE may be used, the tombstone as DUMP would give it
--          without the successor, with field t from byte 6 on
-- ARGV[6]  idle timeout, ms, unless the session has one of its own; "" or left out to keep the remaining TTL
-- ARGV[7]  new data, also "" if ARGV[6] is given; "" or left out to keep the data
-- ARGV[8]  channel to which the key of the old id is published if it is ended now; "" or left out for none
-- ARGV[9]  for how long the old id may still read, ms; "" or left out for not at all
-- ARGV[10] says that the data is sealed, the old and the new; left out if it is not
--
-- Returns  D header      moved now, or by an earlier run whose reply was lost
--          D ttl record  the same without KEYS[2]; without the data if that is new
--          A             the old id is absent
--          E end         the old id was ended
--          C             the new id is in use, or was, or the version is another one
--          O             with KEYS[2]: the session has an owner, whose key must know of the move; nothing was
--                        changed
--          F             a key holds something else, or one of data and record is sealed and the other is not
local floor = math.floor
local function clock() -- ms since 1970
  local time = redis.call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end
local function number(s, at) -- the six bytes of s from at on
  local a, b, c, d, e, f = string.byte(s, at, at + 5)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
end
local function idle(head) -- the idle time that a record has of its own, ms; nil: the caller's counts
  if #head < 33 or string.byte(head, 2) % 2 == 0 or string.sub(head, 25, 27) ~= '\3\0\6' then return nil end
  local high, low = string.byte(head, 23, 24)
  return high * 256 + low >= 9 and number(head, 28) or nil
end
local function bytes(n) -- six
  return string.char(floor(n / 2^40) % 256, floor(n / 2^32) % 256, floor(n / 2^24) % 256,
    floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
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
local function owned(record) -- whether the items of a header name an owner
  local at = 25
  while at + 2 <= #record do
    local kind, high, low = string.byte(record, at, at + 2)
    if kind == 1 then return true end
    at = at + 3 + high * 256 + low
  end
end

local new, given, head = KEYS[2], ARGV[6] ~= '' and ARGV[6], redis.pcall('GETRANGE', KEYS[1], '0', '23')
local replace = given or (ARGV[7] or '') ~= ''
if type(head) == 'table' then
  local met = refusal(head)
  if not new or type(met) == 'table' or string.byte(met) ~= 69 then return met end
  local moved = redis.pcall('GET', new)
  return type(moved) == 'string' and string.sub(moved, 3, 10) == ARGV[1] and 'D' .. moved or met
end
if head == '' then return 'A' end
local record = header(head)
if not record or (string.byte(head, 2) > 127) ~= (ARGV[10] ~= nil) then return 'F' end
if new and owned(record) then return 'O' end
if new and redis.call('EXISTS', new) == 1 then return 'C' end
if ARGV[4] ~= '' and ARGV[4] ~= string.sub(head, 3, 10) then return 'C' end

local left, now, deadline = redis.call('PTTL', KEYS[1]), clock(), number(head, 17)
local ttl = tonumber(given and idle(record) or given or left)
if ttl < 0 then ttl = tonumber(ARGV[2]) end -- somebody has taken the TTL away
if deadline > 0 then ttl = math.min(ttl, deadline - now) end
if ttl <= 0 then return 'A' end

-- Nothing must stop half-way. What HSET says of a string proves that it is permitted, and that the
-- server is not at maxmemory. The value moves without entering Lua.
local dump = #ARGV[5] > 9
local t = dump and string.sub(ARGV[5], 6, 14) or ARGV[5]
if (ARGV[9] or '') ~= '' then t = string.sub(t, 1, 1) .. '\1' .. string.sub(t, 3) .. bytes(now + ARGV[9]) end
local tombstone = { 't', t, 's', ARGV[3] }
local set = redis.pcall('HSET', KEYS[1], unpack(tombstone))
if type(set) ~= 'table' or not wrongtype(set) then return set end
redis.call('SETRANGE', KEYS[1], '2', ARGV[1])
record = string.sub(record, 1, 2) .. ARGV[1] .. string.sub(record, 11)
local keep = math.max(left, 0) + ARGV[2]
if new then
  redis.call('RENAME', KEYS[1], new)
else
  if not replace then record = redis.call('GET', KEYS[1]) end
  -- A key that is deleted while its slot moves belongs to the other node; RESTORE does not delete.
  local put = dump and redis.pcall('RESTORE', KEYS[1], keep, ARGV[5], 'REPLACE')
  if put and put.err then return put end
  if not put then redis.call('DEL', KEYS[1]) end
end
redis.call('HSET', KEYS[1], unpack(tombstone))
redis.call('PEXPIRE', KEYS[1], keep)
if new and replace then
  redis.call('SET', new, record .. ARGV[7], 'PX', ttl)
elseif new and ttl ~= left then
  redis.call('PEXPIRE', new, ttl)
end
if (ARGV[8] or '') ~= '' then redis.pcall('PUBLISH', ARGV[8], KEYS[1]) end -- last, whether it is permitted or not
return 'D' .. (new and '' or bytes(ttl)) .. record
