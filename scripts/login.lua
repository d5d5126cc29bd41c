-- login.lua: looks at an owner.
--
-- KEYS[1]  key of the owner
--
-- Returns  D time generation  ms since 1970, six bytes; the generation in decimal, or nothing without a key
--          F                  the key holds something else
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

local g = redis.pcall('ZSCORE', KEYS[1], 'g')
if type(g) == 'table' then return wrongtype(g) and 'F' or g end
if not g and redis.call('EXISTS', KEYS[1]) == 1 then return 'F' end
return 'D' .. bytes(clock()) .. (g and string.format('%.0f', floor(-g / 2)) or '')
