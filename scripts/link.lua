-- link.lua: makes the claim of a renewal the successor of the id that was left, or gives it up. The
-- header stays: for the same link again, or for the renewal that takes over.
--
-- KEYS[1]  key of the id that was left
-- ARGV[1]  claim, 8 bytes
-- ARGV[2]  successor, its key without the prefix; left out to give the claim up
-- ARGV[3]  tombstone TTL, ms, with ARGV[2]
-- ARGV[4]  channel to which the key is published if it is linked now; left out for none
--
-- Returns  D header  of the session that was left: linked now, or by an earlier run; or given up
--          A         nothing is known of the claim
--          E end     the claim does not stand: the session was ended otherwise
--          F         the key holds something else
local found = redis.pcall('HMGET', KEYS[1], 't', 'c', 's', 'h')
if found.err then return string.find(found.err, '^%-?WRONGTYPE') and 'A' or found end
local t, claim, successor, header = found[1], found[2], found[3], found[4]
if not t then return redis.call('EXISTS', KEYS[1]) == 1 and 'F' or 'A' end
if #t < 9 or string.byte(t) ~= 192 or string.byte(t, 2) > 127 then return 'F' end

if not ARGV[2] then
  if claim == ARGV[1] then redis.call('HDEL', KEYS[1], 'c') end
  return 'D'
end
if claim == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], math.max(ARGV[3], redis.call('PTTL', KEYS[1])))
  redis.call('HSET', KEYS[1], 's', ARGV[2])
  redis.call('HDEL', KEYS[1], 'c')
  if ARGV[4] then redis.pcall('PUBLISH', ARGV[4], KEYS[1]) end -- last, whether it is permitted or not
elseif successor ~= ARGV[2] then
  return 'E' .. t
end
return header and 'D' .. header or 'E' .. t
