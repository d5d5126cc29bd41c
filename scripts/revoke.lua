-- revoke.lua: closes the generation of an owner's sessions, so that they can be ended one by one.
--
-- KEYS[1]  key of the owner
-- ARGV[1]  nonce of the revoke, 8 bytes
-- ARGV[2]  how long the owner's key lives from now on at least, ms
-- ARGV[3]  generation of a key that is made now, drawn at random
-- ARGV[4]  ref of a session that goes on; left out for none
--
-- Returns  D generation  that is open now, in decimal: what has a lower one is to be ended
--          A             the session that is to go on is not among the owner's; nothing was changed
--          F             the key holds something else
local floor = math.floor
local function clock() -- ms since 1970
  local time = redis.call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end
local function wrongtype(reply) return string.find(reply.err, '^%-?WRONGTYPE') end
local function drop(from, to) -- a few of the members with these scores
  local members = redis.call('ZRANGE', KEYS[1], from, to, 'BYSCORE', 'LIMIT', 0, 100)
  if #members > 0 then redis.call('ZREM', KEYS[1], unpack(members)) end
end

local g = redis.pcall('ZSCORE', KEYS[1], 'g')
if type(g) == 'table' then return wrongtype(g) and 'F' or g end
if not g and redis.call('EXISTS', KEYS[1]) == 1 then return 'F' end
local seconds, generation = floor(clock() / 1000), g and floor(-g / 2) or tonumber(ARGV[3])

-- At maxmemory a script may go on whose first write needs no memory.
redis.call('ZREM', KEYS[1], '')
if not redis.call('ZSCORE', KEYS[1], 'x' .. ARGV[1]) then
  local score = ARGV[4] and redis.call('ZSCORE', KEYS[1], 'l' .. ARGV[4])
  if ARGV[4] and (not score or tonumber(score) < generation * 2^32) then return 'A' end
  generation = generation + 1
  redis.call('ZADD', KEYS[1], -2 * generation - 1, 'g', -seconds, 'x' .. ARGV[1])
  if score then redis.call('ZADD', KEYS[1], score + 2^32, 'l' .. ARGV[4]) end
  drop(3600 - seconds, -2 * generation - 2)
end
-- In a second run too, or a WAIT that follows would be acknowledged at once.
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), ARGV[2]))
return 'D' .. string.format('%.0f', generation)
