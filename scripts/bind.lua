-- bind.lua: enters an id among the sessions of an owner: one that is reserved for a login, or the one to
-- which a session moves, in the place of the one that it has left. An id is entered once: an attempt that
-- comes when it has been taken out enters nothing.
--
-- KEYS[1]  key of the owner
-- ARGV[1]  ref of the id
-- ARGV[2]  deadline of the session, ms since 1970; of a login "0" for none but that of ARGV[8]
-- ARGV[3]  how long the owner's key lives from now on at least, ms
-- ARGV[4]  generation of a key that is made now, drawn at random
-- ARGV[5]  ref of the id that was left, or of a login of the one that will be; "" for none
-- ARGV[6]  of a login: the generation that it has seen; "" if there was no key; left out for a move
-- ARGV[7]  of a login: when it began, ms since 1970
-- ARGV[8]  of a login: absolute timeout, ms; "0" for none
-- ARGV[9]  of a login: how many sessions the owner may have, beside that of ARGV[5]; left out for any number
--
-- Returns  D time deadline  entered, now or by an earlier run; both ms since 1970, six bytes. Of a move also
--                           if the id has been taken out since: its tombstone refuses the session
--          S                the login is stale: a revoke has come since it began, or an hour has passed; or
--                           nothing is known of a session that moves, and there was a revoke
--          N                the deadline has passed, or there is none
--          C                the id was entered before, and has been taken out or is being ended
--          L                the owner has as many sessions as may be
--          F                the key holds something else
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

local entry, mark = 'l' .. ARGV[1], 'w' .. ARGV[1]
local found = redis.pcall('ZMSCORE', KEYS[1], 'g', entry, mark, 'l' .. ARGV[5])
if found.err then return wrongtype(found) and 'F' or found end
local g, score = found[1], tonumber(found[2])
if not g and redis.call('EXISTS', KEYS[1]) == 1 then return 'F' end
local now, generation, deadline = clock(), g and floor(-g / 2) or tonumber(ARGV[4]), tonumber(ARGV[2])
local seconds, base, login = floor(now / 1000), generation * 2^32, ARGV[6]
local revoked = g and g % 2 == 1 -- since the key was made

if login then
  local stale = revoked
  if ARGV[6] ~= '' then stale = not g or tonumber(ARGV[6]) ~= generation end
  if stale or math.abs(now - ARGV[7]) > 3600000 then return 'S' end
  local absolute = tonumber(ARGV[8])
  if absolute > 0 and (deadline == 0 or deadline > now + absolute) then deadline = now + absolute end
  if deadline <= now then return 'N' end
end

-- Now and then is enough.
if g and now % 16 == 0 then
  drop(base, base + seconds)
  drop(3600 - seconds, g - 1)
end
local own = base + math.min(math.ceil(deadline / 1000) + 3600, 2^32 - 1)
if login then
  if score and score < base or not score and found[3] then return 'C' end
  local others = ARGV[9] and not score and redis.call('ZCOUNT', KEYS[1], 1, '+inf') - (found[4] and 1 or 0)
  if others and others >= tonumber(ARGV[9]) then return 'L' end
  score = math.max(score or own, own)
elseif not score and found[3] then
  return 'D' .. bytes(now) .. bytes(deadline)
else -- the generation goes along: a revoke that has closed the old id has closed the new one
  score = score or tonumber(found[4])
  if not score and revoked then return 'S' end
  -- A place that was reserved may be forgotten before the session has to be.
  score = score and math.max(score, floor(score / 2^32) * 2^32 + own - base) or own
end

if g then
  redis.call('ZADD', KEYS[1], score, entry, -seconds, mark)
else
  redis.call('ZADD', KEYS[1], -2 * generation, 'g', score, entry, -seconds, mark)
end
if not login then redis.call('ZREM', KEYS[1], 'l' .. ARGV[5]) end
local keep = math.max(deadline - now + 7200000, ARGV[3])
if g and not found[2] then
  redis.call('PEXPIRE', KEYS[1], keep, 'GT')
else -- sets it in any case, or a WAIT that follows a second run would be acknowledged at once
  redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), keep))
end
return 'D' .. bytes(now) .. bytes(deadline)
