-- restore.lua: puts back what a write has replaced by mistake, or gives a session another header, unless that
-- has been changed since.
--
-- KEYS[1]  key of the session
-- ARGV[1]  version that the write has stored, 8 bytes
-- ARGV[2]  value that it has replaced, or that has the other header
-- ARGV[3]  header that must be stored, since a session that gets another one keeps its version; left out for any
--
-- Returns  D  put back
--          C  another version is stored, or another header, or none
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

local version = redis.pcall('GETRANGE', KEYS[1], '2', '9')
if version ~= ARGV[1] then return type(version) == 'string' and 'C' or version end
if ARGV[3] and redis.call('GETRANGE', KEYS[1], '0', #ARGV[3] - 1) ~= ARGV[3] then return 'C' end
if string.byte(ARGV[2]) ~= 193 then -- no record: nobody knows how long it was to live
  redis.call('SET', KEYS[1], ARGV[2])
  return 'D'
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
local left, own = redis.call('PTTL', KEYS[1]), idle(ARGV[2])
if own and left > own then
  redis.call('PEXPIRE', KEYS[1], own)
  left = own
end
local deadline = #ARGV[2] >= 22 and number(ARGV[2], 17) or 0
if deadline > 0 and clock() + left > deadline then
  redis.call('PEXPIREAT', KEYS[1], deadline)
end
return 'D'
