-- read.lua: reads a session, and may restart its idle timeout if it is live.
--
-- KEYS[1]  key of the session
-- ARGV[1]  idle timeout, ms; without ARGV[2] any text, which tells the entries of a client's cache apart
-- ARGV[2]  part of the idle timeout that the TTL must be off by before it is set, 0 to 1; left out to read only
--
-- Returns  the stored value as it is and its TTL in ms, or nil when the key is absent or, if it is to be restarted, past its
--          absolute deadline
local value = redis.call('GET', KEYS[1])
if not value then return false end
local left = redis.call('PTTL', KEYS[1])
local kind, flags = string.byte(value, 1, 2)
if not ARGV[2] or kind ~= 193 or flags ~= 0 or #value < 22 then return { value, left } end

local ttl, a, b, c, d, e, f = tonumber(ARGV[1]), string.byte(value, 17, 22)
local deadline = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
if deadline > 0 then
  local time = redis.call('TIME')
  ttl = math.min(ttl, deadline - time[1] * 1000 - math.floor(time[2] / 1000))
  if ttl <= 0 then return false end
end

if math.abs(ttl - left) >= ttl * ARGV[2] then
  redis.call('PEXPIRE', KEYS[1], ttl)
  left = ttl
end
return { value, left }
