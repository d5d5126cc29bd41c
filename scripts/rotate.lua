-- rotate.lua: moves a live session to a new id and ends the old one.
--
-- KEYS[1]  key of the old id
-- KEYS[2]  key of the new id; left out in a cluster, where the caller stores the returned record
-- ARGV[1]  start of the new record: kind, flags and a version that no other write has used
-- ARGV[2]  tombstone TTL, ms
-- ARGV[3]  new idle timeout, ms; left out to keep data and remaining TTL
-- ARGV[4]  new data, if ARGV[3] is given
--
-- Returns  D ttl record  moved now, or by an earlier run whose reply was lost
--          A             the old id is absent
--          E tombstone   the old id was ended
--          C             the new id is in use, or was
--          F             a key holds something else
local floor = math.floor
local function ms48(n)
  return string.char(floor(n / 2^40) % 256, floor(n / 2^32) % 256, floor(n / 2^24) % 256,
    floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end
local old, new = redis.call('GET', KEYS[1]), KEYS[2] and redis.call('GET', KEYS[2])
if not old then return 'A' end
local kind, flags = string.byte(old, 1, 2)
if kind == 192 and #old == 8 then
  if new and string.sub(new, 1, 10) == ARGV[1] then return 'D' .. ms48(redis.call('PTTL', KEYS[2])) .. new end
  return 'E' .. old
end
if kind ~= 193 or flags ~= 0 or #old < 22 then return 'F' end
if new then return 'C' end

local time, left = redis.call('TIME'), redis.call('PTTL', KEYS[1])
if left < 0 then left = tonumber(ARGV[2]) end -- somebody has taken the TTL away
local now, ttl = time[1] * 1000 + floor(time[2] / 1000), tonumber(ARGV[3]) or left
local a, b, c, d, e, f = string.byte(old, 17, 22)
local deadline = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
if deadline > 0 then ttl = math.min(ttl, deadline - now) end
if ttl <= 0 then return 'A' end

local record = ARGV[1] .. string.sub(old, 11, 22) .. (ARGV[4] or string.sub(old, 23))
if new == false then redis.call('SET', KEYS[2], record, 'PX', ttl) end
redis.call('SET', KEYS[1], '\192\2' .. ms48(now), 'PX', left + ARGV[2])
return 'D' .. ms48(ttl) .. record
