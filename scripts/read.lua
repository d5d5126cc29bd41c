-- read.lua: reads a session and restarts its idle timeout if it is live.
--
-- KEYS[1]  key of the session
-- ARGV[1]  idle timeout, ms
-- ARGV[2]  part of the idle timeout that the TTL must be off by before it is set, 0 to 1
--
-- Returns  the stored value as it is, or nil when the key is absent or past its absolute deadline
local value = redis.call('GET', KEYS[1])
local kind, flags = string.byte(value or '', 1, 2)
if kind ~= 193 or flags ~= 0 or #value < 22 then return value end

local ttl, a, b, c, d, e, f = tonumber(ARGV[1]), string.byte(value, 17, 22)
local deadline = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
if deadline > 0 then
  local time = redis.call('TIME')
  ttl = math.min(ttl, deadline - time[1] * 1000 - math.floor(time[2] / 1000))
  if ttl <= 0 then return false end
end

if math.abs(ttl - redis.call('PTTL', KEYS[1])) >= ttl * ARGV[2] then
  redis.call('PEXPIRE', KEYS[1], ttl)
end
return value
