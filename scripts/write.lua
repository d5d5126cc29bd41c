-- write.lua: stores a session unless it was ended.
--
-- KEYS[1]  key of the session
-- ARGV[1]  version of the new record, 8 bytes that no other write has used
-- ARGV[2]  data
-- ARGV[3]  idle timeout, ms, unless the session has one of its own
-- ARGV[4]  condition: "" or left out none, "absent", "present", or the version that must be stored
-- ARGV[5]  of a session that begins: its absolute timeout, ms, or its header, with which ARGV[3] counts;
--          "0" or left out for no timeout
-- ARGV[6]  what follows the deadline in the header of a session that begins without one; left out for
--          nothing. Of sealed data: with what it was sealed
-- ARGV[7]  says that the data is sealed; "" or left out if it is not
-- ARGV[8]  of a session that begins with a header: its absolute timeout from now on, ms, if that is sooner
--          than the deadline there; left out for none
--
-- Returns  D header  stored now, or by an earlier run whose reply was lost
--          A         absent, and the condition wants it present; or past the deadline of ARGV[5]
--          E end     the session was ended
--          C         the condition is not met
--          I items   what follows the deadline in the header, which is not ARGV[6]; nothing was changed
--          F         the key holds something else, or one of data and record is sealed and the other is not
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
local function bytes(n) -- six
  return string.char(floor(n / 2^40) % 256, floor(n / 2^32) % 256, floor(n / 2^24) % 256,
    floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end
local function wrongtype(reply) return string.find(reply.err, '^%-?WRONGTYPE') end
local function refusal(reply) -- what to say of a key whose string cannot be read
  if not wrongtype(reply) then return reply end
  local t = redis.pcall('HGET', KEYS[1], 't')
  if type(t) == 'table' then return wrongtype(t) and 'F' or t end
  if not t or #t < 9 or string.byte(t) ~= 192 or string.byte(t, 2) > 127 then return 'F' end
  return 'E' .. t
end
local function header(head) -- all before the data of the record that begins with head; nil: foreign
  local kind, flags, high, low = string.byte(head, 1), string.byte(head, 2), string.byte(head, 23, 24)
  if #head < 22 or kind ~= 193 or flags > 127 and floor(flags / 16) ~= 9 then return nil end
  if flags % 2 == 0 then return string.sub(head, 1, 22) end
  local all = low and redis.call('GETRANGE', KEYS[1], '0', 23 + high * 256 + low)
  return all and #all == 24 + high * 256 + low and all or nil
end

local head = redis.pcall('GETRANGE', KEYS[1], '0', '23')
if type(head) == 'table' then return refusal(head) end
local live = head ~= ''
local record, sealed = live and header(head), (ARGV[7] or '') ~= ''
if live and (not record or (string.byte(head, 2) > 127) ~= sealed) then return 'F' end

local version, ttl, condition, now = string.sub(head, 3, 10), ARGV[3], ARGV[4] or '', nil
local deadline = live and number(head, 17) or 0
if deadline > 0 or not live then
  now = clock()
  if deadline > 0 and deadline <= now then live = false end
end

if not live then
  if condition ~= '' and condition ~= 'absent' then return 'A' end
  if ARGV[5] and string.byte(ARGV[5]) == 193 then
    record, deadline = ARGV[5], number(ARGV[5], 17)
    if ARGV[8] and (deadline == 0 or now + ARGV[8] < deadline) then
      deadline = now + ARGV[8]
      record = string.sub(record, 1, 16) .. bytes(deadline) .. string.sub(record, 23)
    end
    if deadline > 0 and deadline <= now then return 'A' end
  else
    local absolute, items = tonumber(ARGV[5] or 0), ARGV[6] or ''
    deadline = absolute > 0 and now + absolute or 0
    local flags = (sealed and 144 or 0) + (items ~= '' and 1 or 0)
    record = string.char(193, flags) .. ARGV[1] .. bytes(now) .. bytes(deadline) .. items
    ttl = idle(record) or ttl
  end
elseif condition == 'absent' or (#condition == 8 and condition ~= version) then
  return version == ARGV[1] and 'D' .. record or 'C'
else
  ttl = idle(record) or ttl
end
if sealed and ARGV[6] ~= string.sub(record, 23) then return 'I' .. string.sub(record, 23) end
if deadline > 0 then ttl = math.min(ttl, deadline - now) end

record = string.sub(record, 1, 2) .. ARGV[1] .. string.sub(record, 11)
redis.call('SET', KEYS[1], record .. ARGV[2], 'PX', ttl)
return 'D' .. record
