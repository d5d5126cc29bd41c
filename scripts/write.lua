-- write.lua: stores a session unless it was ended.
--
-- KEYS[1]  key of the session
-- ARGV[1]  start of the new record: kind, flags and a version that no other write has used
-- ARGV[2]  data
-- ARGV[3]  idle timeout, ms
-- ARGV[4]  condition: "" or left out none, "absent", "present", or the 8-byte version that must be stored
-- ARGV[5]  absolute timeout of a new session, ms; left out for none
--
-- Returns  D stamps    creation time and deadline; stored now, or by an earlier run whose reply was lost
--          A           absent, and the condition wants it present
--          E tombstone the session was ended
--          C           the condition is not met
--          F           the key holds something else
local head = redis.call('GETRANGE', KEYS[1], '0', '21')
local kind, flags = string.byte(head, 1, 2)
if kind == 192 and #head == 8 then return 'E' .. head end
if kind and (kind ~= 193 or flags ~= 0 or #head < 22) then return 'F' end

local stamps, ttl, condition, now = string.sub(head, 11), ARGV[3], ARGV[4] or '', nil
local a, b, c, d, e, f = string.byte(head, 17, 22)
local deadline = a and ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f or 0
if deadline > 0 or not kind then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
  if kind and deadline <= now then kind = nil end
end

if not kind then
  if condition ~= '' and condition ~= 'absent' then return 'A' end
  local floor = math.floor
  local function ms48(n)
    return string.char(floor(n / 2^40), floor(n / 2^32) % 256, floor(n / 2^24) % 256,
      floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
  end
  deadline = ARGV[5] and now + ARGV[5] or 0
  stamps = ms48(now) .. ms48(deadline)
elseif condition == 'absent' or (#condition == 8 and condition ~= string.sub(head, 3, 10)) then
  if string.sub(head, 1, 10) ~= ARGV[1] then return 'C' end
  return 'D' .. stamps
end
if deadline > 0 then ttl = math.min(ttl, deadline - now) end

redis.call('SET', KEYS[1], ARGV[1] .. stamps .. ARGV[2], 'PX', ttl)
return 'D' .. stamps
