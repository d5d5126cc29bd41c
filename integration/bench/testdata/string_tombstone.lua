-- string_tombstone.lua: ends a session by putting a string in its place, which only scripts refuse to
-- overwrite. It is here to be compared with invalidate.lua, which puts a hash there.
--
-- KEYS[1]  key of the session
-- ARGV[1]  reason, one byte; in a tombstone any other one takes the place of 2, rotated
-- ARGV[2]  tombstone TTL, ms
-- ARGV[3]  "live" to end it only if it is live; left out to end it in any case
--
-- Returns  D           ended, now or before
--          A           absent, and it had to be live
--          E tombstone ended before, and it had to be live
--          F           the key holds something else
local head = redis.call('GETRANGE', KEYS[1], '0', '21')
local kind, flags = string.byte(head, 1, 2)
local ended = kind == 192 and #head == 8
if kind and not ended and (kind ~= 193 or flags ~= 0 or #head < 22) then return 'F' end
if ARGV[3] and not kind then return 'A' end
if ARGV[3] and ended then return 'E' .. head end

local tombstone, keep, left = head, tonumber(ARGV[2]), kind and redis.call('PTTL', KEYS[1]) or 0
if ended then keep = math.max(keep, left) end
if not ended or (string.byte(head, 2) == 2 and ARGV[1] ~= '\2') then
  local time, floor = redis.call('TIME'), math.floor
  local now = time[1] * 1000 + floor(time[2] / 1000)
  local a, b, c, d, e, f = string.byte(head, 17, 22) -- nothing of a tombstone
  local deadline = a and ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f or 0
  if ARGV[3] and deadline > 0 and deadline <= now then return 'A' end
  tombstone = '\192' .. ARGV[1] .. string.char(floor(now / 2^40), floor(now / 2^32) % 256,
    floor(now / 2^24) % 256, floor(now / 65536) % 256, floor(now / 256) % 256, now % 256)
  if not ended then keep = keep + math.max(left, 0) end
end

-- A tombstone that stands is written again: a WAIT after a script that wrote nothing is acknowledged at once and proves nothing.
local set = redis.pcall('SET', KEYS[1], tombstone, 'PX', keep)
if set.err and string.find(set.err, 'OOM', 1, true) then
  -- At maxmemory SET is refused. A script whose first write frees memory may go on, so a logout works on a full server too.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], tombstone, 'PX', keep)
elseif set.err then
  return set
end
return 'D'
