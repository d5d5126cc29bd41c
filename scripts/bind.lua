-- bind.lua: enters an id among the sessions of an owner: one that is reserved for a login, or the one to
-- which a session moves, in the place of the one that it has left.
--
-- KEYS[1]  key of the owner
-- ARGV[1]  ref of the id
-- ARGV[2]  deadline of the session, ms since 1970
-- ARGV[3]  how long the owner's key lives from now on at least, ms
-- ARGV[4]  generation of a key that is made now, drawn at random
-- ARGV[5]  ref of the id that was left; "" for a login
-- ARGV[6]  of a login: the generation that it has seen; "" if there was no key
-- ARGV[7]  of a login: when it began, ms since 1970
-- ARGV[8]  how many sessions the owner may have; left out for any number
--
-- Returns  D time  entered, now or by an earlier run; ms since 1970, six bytes
--          S       the login is stale: a revoke has come since it began, or an hour has passed
--          N       the deadline has passed
--          L       the owner has as many sessions as may be
--          F       the key holds something else
local floor = math.floor
local function clock() -- ms since 1970
  local time = redis.call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end
local function bytes(n) -- six
  return string.char(floor(n / 2^40) % 256, floor(n / 2^32) % 256, floor(n / 2^24) % 256,
    floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end
local function wrongtype(reply) return string.find(reply.err, '^%-?WRONGTYPE') end
local function drop(from, to) -- a few of the members with these scores
  local members = redis.call('ZRANGE', KEYS[1], from, to, 'BYSCORE', 'LIMIT', 0, 100)
  if #members > 0 then redis.call('ZREM', KEYS[1], unpack(members)) end
end

local scores = redis.pcall('ZMSCORE', KEYS[1], 'g', 'l' .. ARGV[1], 'l' .. ARGV[5])
if scores.err then return wrongtype(scores) and 'F' or scores end
local g, score = scores[1], scores[2]
if not g and redis.call('EXISTS', KEYS[1]) == 1 then return 'F' end
local now, generation = clock(), g and floor(-g / 2) or tonumber(ARGV[4])
local seconds, base, login = floor(now / 1000), generation * 2^32, ARGV[5] == ''

if login then
  local stale
  if ARGV[6] == '' then
    stale = g and g % 2 == 1 -- a revoke has been here since the key was made
  else
    stale = not g or tonumber(ARGV[6]) ~= generation
  end
  if stale or math.abs(now - ARGV[7]) > 3600000 then return 'S' end
  if tonumber(ARGV[2]) <= now then return 'N' end
end

if g then
  drop(base, base + seconds)
  if ARGV[8] then drop(3600 - seconds, g - 1) end
end
if login then
  if score and tonumber(score) < base then score = nil end
  if ARGV[8] and not score and redis.call('ZCOUNT', KEYS[1], 1, '+inf') >= tonumber(ARGV[8]) then return 'L' end
else -- the generation goes along: a revoke that has closed the old id has closed the new one
  score = score or scores[3]
end
score = score or base + math.min(math.ceil(ARGV[2] / 1000) + 3600, 2^32 - 1)

if not g then redis.call('ZADD', KEYS[1], -2 * generation, 'g') end
redis.call('ZADD', KEYS[1], score, 'l' .. ARGV[1])
if ARGV[8] then redis.call('ZADD', KEYS[1], -seconds, 'w' .. ARGV[1]) end
if not login then redis.call('ZREM', KEYS[1], 'l' .. ARGV[5], 'w' .. ARGV[5]) end
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), ARGV[2] - now + 7200000, ARGV[3]))
return 'D' .. bytes(now)
