-- Changes what the windows of one subject have counted, each only if it is still the present one.
--
-- KEYS[1]      marks this adjustment as made: quota:{<subject>}:adjusted:<id>
-- KEYS[i+1]    the counter of limit i, as take.lua keeps it
-- ARGV[1]      how long the mark stays, in milliseconds
-- ARGV[2i]     the end of the window of limit i that is meant, in milliseconds since the epoch
-- ARGV[2i+1]   by how much to change its count; negative gives back
--
-- Returns 1, or 0 when the same adjustment was made before: giving back twice would admit too many.

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then
  return 0
end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

for i = 2, #KEYS do
  local meant = ARGV[2 * (i - 1)]
  local by = tonumber(ARGV[2 * (i - 1) + 1])
  if tonumber(meant) > now_ms then
    local value = redis.pcall('GET', KEYS[i])
    local window_end, count
    if type(value) == 'string' then
      window_end, count = string.match(value, '^(%d+):(%d+)$')
    end
    -- What was admitted elsewhere may be the first of its window; giving back needs a count.
    if not value and by > 0 then
      window_end, count = meant, '0'
    end
    if window_end == meant then
      count = math.max(tonumber(count) + by, 0)
      redis.call('SET', KEYS[i], meant .. ':' .. string.format('%.0f', count))
      redis.call('PEXPIREAT', KEYS[i], meant)
    end
  end
end

return 1
