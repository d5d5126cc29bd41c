-- revoke.lua: closes the generation of an owner's sessions, so that they can be ended one by one.
--
-- KEYS[1]  key of the owner
-- ARGV[1]  nonce of the revoke, 8 bytes
-- ARGV[2]  how long the owner's key lives from now on at least, ms
-- ARGV[3]  generation of a key that is made now, drawn at random
-- ARGV[4]  what those who watch the owner are told: minus the reason * 2^42, minus the time, ms since 1970
-- ARGV[5]  ref of a session that goes on; "" or left out for none
-- ARGV[6]  channel to which the key is published if the generation is closed now; left out for none
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
local kept, closed = ARGV[5] ~= '' and ARGV[5], false

-- At maxmemory a script may go on whose first write needs no memory.
redis.call('ZREM', KEYS[1], '')
if not redis.call('ZSCORE', KEYS[1], 'x' .. ARGV[1]) then
  local score = kept and redis.call('ZSCORE', KEYS[1], 'l' .. kept)
  if kept and (not score or tonumber(score) < generation * 2^32) then return 'A' end
  generation = generation + 1
  redis.call('ZADD', KEYS[1], -2 * generation - 1, 'g', ARGV[4], 'e', -seconds, 'x' .. ARGV[1])
  if score then redis.call('ZADD', KEYS[1], score + 2^32, 'l' .. kept) end
  drop(3600 - seconds, -2 * generation - 2)
  closed = true
end
-- In a second run too, or a WAIT that follows would be acknowledged at once.
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), ARGV[2]))
if closed and ARGV[6] then redis.pcall('PUBLISH', ARGV[6], KEYS[1]) end -- last, whether it is permitted or not
return 'D' .. string.format('%.0f', generation)
