-- touch.lua: restarts the idle timeout of a live session.
--
-- KEYS[1]  key of the session
-- ARGV[1]  idle timeout, ms
-- ARGV[2]  part of the idle timeout that the TTL must be off by before it is set, 0 to 1
--
-- Returns  D           live; the TTL was set
--          K           live; the TTL was close enough and nothing was changed
--          A           absent
--          E tombstone the session was ended
--          F           the key holds something else
local head = redis.call('GETRANGE', KEYS[1], '0', '21')
local kind, flags = string.byte(head, 1, 2)
if not kind then return 'A' end
if kind == 192 and #head == 8 then return 'E' .. head end
if kind ~= 193 or flags ~= 0 or #head < 22 then return 'F' end

local ttl, a, b, c, d, e, f = tonumber(ARGV[1]), string.byte(head, 17, 22)
local deadline = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
if deadline > 0 then
  local time = redis.call('TIME')
  ttl = math.min(ttl, deadline - time[1] * 1000 - math.floor(time[2] / 1000))
  if ttl <= 0 then return 'A' end
end

if math.abs(ttl - redis.call('PTTL', KEYS[1])) >= ttl * ARGV[2] then
  redis.call('PEXPIRE', KEYS[1], ttl)
  return 'D'
end
return 'K'
