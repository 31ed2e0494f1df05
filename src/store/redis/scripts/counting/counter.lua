-- The start of every script that counts: the clock, whole numbers, and how a counter is read. The algorithms follow,
-- then the script itself: scripts.rs puts them together.
--
-- An algorithm is a function of a step, a counter and its limit. It is a single function, because making several would
-- cost a call more than their work. The steps:
--   read      fills in what the counter holds at present; returns an error where its value is no counter
--   write     keeps the counter after `units` were taken
--   reset     returns the microseconds until the units left change, when `units` are left (see quota/standing.rs)
--   adjust    changes by `units` the count at `mark_us` (see quota/counter.rs); negative gives back
-- Its arguments:
--   counter   key; once it is read, `used`, the units counted at present, and `room`, the units that may be taken
--   limit     quota, the units a window admits; window, in milliseconds; burst, the units a bucket holds; window_end,
--             when the present window ends, in milliseconds; see limit.lua
--
-- quota/counter.rs computes the same. The time that a value belongs to is part of the value, so a counter that outlives
-- it (an expiry that was lost or is late, a clock that was set back) counts as nothing, whatever its expiry says; the
-- marks of logs and buckets that are later than now count from now. Windows are multiples of their length since the epoch; every whole number stays below 2^53, where Lua's doubles are exact.

local floor, ceil, max, min, fmod = math.floor, math.ceil, math.max, math.min, math.fmod

local call, format, match = redis.call, string.format, string.match

local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = clock[1] * 1000 + floor(clock[2] / 1000)

local function whole(number)
  return format('%.0f', number)
end

-- An error or nothing, then the numbers that a key holds, if it exists. A value of another shape is an error: refusing
-- is safer than guessing how much was used.
local function numbers(key, pattern)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    return value
  elseif not value then
    return nil
  end
  local first, second, third = match(value, pattern)
  first, second, third = tonumber(first), tonumber(second), tonumber(third)
  if not second or second >= 1e15 or (third and third >= 1e15) then
    return redis.error_reply('BADCOUNTER ' .. key .. ' does not hold a counter')
  end
  return nil, first, second, third
end
