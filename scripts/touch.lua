-- touch.lua: restarts the idle timeout of a live session.
--
-- KEYS[1]  key of the session
-- ARGV[1]  idle timeout, ms, unless the session has one of its own
-- ARGV[2]  part of the idle timeout that the TTL must be off by before it is set, 0 to 1
--
-- Returns  D      live; the TTL was set
--          K      live; the TTL was close enough and nothing was changed
--          A      absent
--          E end  the session was ended
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

local head = redis.pcall('GETRANGE', KEYS[1], '0', '32')
if type(head) == 'table' then return refusal(head) end
if head == '' then return 'A' end
local kind, flags = string.byte(head, 1, 2)
if #head < 22 or kind ~= 193 or flags > 127 and floor(flags / 16) ~= 9 then return 'F' end

local ttl, deadline = idle(head) or tonumber(ARGV[1]), number(head, 17)
if deadline > 0 then ttl = math.min(ttl, deadline - clock()) end
if ttl <= 0 then return 'A' end
if math.abs(ttl - redis.call('PTTL', KEYS[1])) < ttl * ARGV[2] then return 'K' end
redis.call('PEXPIRE', KEYS[1], ttl)
return 'D'
