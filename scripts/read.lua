-- read.lua: reads a session, and may restart its idle timeout if it is live.
--
-- KEYS[1]  key of the session
-- ARGV[1]  idle timeout, ms, unless the session has one of its own; left out to read only
-- ARGV[2]  part of the idle timeout that the TTL must be off by before it is set, 0 to 1
--
-- Returns  the stored value as it is and its TTL in ms, in an array
--          A      absent, or past its absolute deadline
--          E end  the session was ended
--          G end successor  the same, but it has moved and may still be read under the successor's key, which is
--                 given without its prefix
--          F      the key holds something else
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
local function wrongtype(reply) return string.find(reply.err, '^%-?WRONGTYPE') end
local function refusal(reply) -- what to say of a key whose string cannot be read
  if not wrongtype(reply) then return reply end
  local t = redis.pcall('HGET', KEYS[1], 't')
  if type(t) == 'table' then return wrongtype(t) and 'F' or t end
  if not t or #t < 9 or string.byte(t) ~= 192 or string.byte(t, 2) > 127 then return 'F' end
  return 'E' .. t
end

local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then
  local met = refusal(value)
  if type(met) == 'table' or #met < 16 or string.byte(met, 3) % 2 == 0 or string.byte(met, 4) ~= 2 then return met end
  local successor = clock() < number(met, 11) and redis.call('HGET', KEYS[1], 's')
  if not successor then return met end
  return 'G' .. string.sub(met, 2, 10) .. successor
end
if not value then return 'A' end
local left = redis.call('PTTL', KEYS[1])
local kind, flags = string.byte(value, 1, 2)
local foreign = #value < 22 or kind ~= 193 or flags > 127 and floor(flags / 16) ~= 9
if not ARGV[1] or foreign then return { value, left } end

local ttl, deadline = idle(value) or tonumber(ARGV[1]), number(value, 17)
if deadline > 0 then ttl = math.min(ttl, deadline - clock()) end
if ttl <= 0 then return 'A' end
if math.abs(ttl - left) >= ttl * ARGV[2] then
  redis.call('PEXPIRE', KEYS[1], ttl)
  left = ttl
end
return { value, left }
