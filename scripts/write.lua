-- write.lua: stores a session unless it was ended.
--
-- KEYS[1]  key of the session
-- ARGV[1]  start of the new record: kind, flags and a version that no other write has used
-- ARGV[2]  data
-- ARGV[3]  idle timeout, ms
-- ARGV[4]  condition: "" none, "absent", "present", or the 8-byte version that must be stored
-- ARGV[5]  absolute timeout of a new session, ms; "0" for none
--
-- Returns  D created   stored now, or by an earlier run whose reply was lost
--          A           absent, and the condition wants it present
--          E tombstone the session was ended
--          C           the condition is not met
--          F           the key holds something else
local head = redis.call('GETRANGE', KEYS[1], 0, 21)
if string.byte(head) == 192 and #head == 8 then return 'E' .. head end
if head ~= '' and (#head < 22 or string.sub(head, 1, 2) ~= '\193\0') then return 'F' end
if string.sub(head, 1, 10) == ARGV[1] then return 'D' .. string.sub(head, 11, 16) end

local stamps, ttl, now = string.sub(head, 11, 22), ARGV[3], nil
local limited = head ~= '' and string.sub(head, 17, 22) ~= '\0\0\0\0\0\0'
if limited or head == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
if limited then
  local a, b, c, d, e, f = string.byte(head, 17, 22)
  local left = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f - now
  if left <= 0 then head = '' elseif left < tonumber(ttl) then ttl = left end
end

if head == '' then
  if ARGV[4] ~= '' and ARGV[4] ~= 'absent' then return 'A' end
  local floor, age = math.floor, tonumber(ARGV[5])
  local function ms48(n)
    return string.char(floor(n / 2^40), floor(n / 2^32) % 256, floor(n / 2^24) % 256,
      floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
  end
  stamps = ms48(now) .. ms48(age > 0 and now + age or 0)
  if age > 0 and age < tonumber(ARGV[3]) then ttl = age else ttl = ARGV[3] end
elseif ARGV[4] == 'absent' or (#ARGV[4] == 8 and ARGV[4] ~= string.sub(head, 3, 10)) then return 'C' end

redis.call('SET', KEYS[1], ARGV[1] .. stamps .. ARGV[2], 'PX', ttl)
return 'D' .. string.sub(stamps, 1, 6)
