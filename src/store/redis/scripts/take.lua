-- Takes up to `wanted` requests from every limit of one subject at once, or none.
--
-- KEYS[i]      the counter of limit i: quota:{<subject>}:<limit name>:<window seconds>
-- ARGV[1]      wanted: requests asked for, a whole number
-- ARGV[2i]     quota of limit i: requests a window admits
-- ARGV[2i+1]   window of limit i, in milliseconds
--
-- Returns whole numbers: the store's clock in microseconds, requests granted, then the requests
-- counted in the present window of each limit, after the grant.
--
-- A counter is the string `<window end in ms>:<requests>`. The window it belongs to is part of the
-- value, so a counter that outlives its window (an expiry that was lost or is late, a clock that was
-- set back) counts as zero, whatever its expiry says. The key expires exactly when its window ends.
-- Windows are multiples of their length since the epoch; every number stays below 2^53, where Lua's
-- doubles are exact.
--
-- A value of any other shape is an error: refusing is safer than guessing how much was used.

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_us = clock[1] * 1000000 + clock[2]

local granted = tonumber(ARGV[1])
local used, ends = {}, {}

for i, key in ipairs(KEYS) do
  local quota = tonumber(ARGV[2 * i])
  local window = tonumber(ARGV[2 * i + 1])
  ends[i] = string.format('%.0f', now_ms - now_ms % window + window)
  used[i] = 0

  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    return value
  end
  if value then
    local window_end, count = string.match(value, '^(%d+):(%d+)$')
    if not count or #count > 15 then
      return redis.error_reply('BADCOUNTER ' .. key .. ' does not hold a counter')
    end
    if window_end == ends[i] then
      used[i] = tonumber(count)
    end
  end
  granted = math.min(granted, math.max(quota - used[i], 0))
end

if granted > 0 then
  for i, key in ipairs(KEYS) do
    used[i] = used[i] + granted
    redis.call('SET', key, ends[i] .. ':' .. string.format('%.0f', used[i]))
    redis.call('PEXPIREAT', key, ends[i])
  end
end

return { now_us, granted, unpack(used) }
