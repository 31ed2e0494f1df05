-- Changes what is counted of one subject, each limit only where it is still counted.
--
-- KEYS[1]       marks this adjustment as made: quota:{<subject>}:adjusted:<id>
-- KEYS[i+1]     the counter of limit i, as take.lua keeps it
-- ARGV[1]       how long the mark stays, in milliseconds
-- ARGV[6i-4]    kind of limit i, and its quota, window in milliseconds and burst, as for take.lua
-- ARGV[6i]      what the change belongs to, in microseconds since the epoch: the mark of the grant that is
--               given back, or the end of the window in which requests were admitted elsewhere
-- ARGV[6i+1]    by how much to change the count; negative gives back
--
-- Returns 1, or 0 when the same adjustment was made before: giving back twice would admit too many.
-- quota/counter.rs computes the same. A counter that cannot be read is left alone.

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then
  return 0
end

local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = clock[1] * 1000 + floor(clock[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

-- Whether a counter can be changed by `by`, and the numbers it holds. Giving back needs a counter.
local function numbers(key, pattern, by)
  local value = redis.pcall('GET', key)
  if type(value) ~= 'string' then
    return not value and by > 0, nil
  end
  local first, second, third = string.match(value, pattern)
  first, second, third = tonumber(first), tonumber(second), tonumber(third)
  return second ~= nil and second < 1e15 and (third or 0) < 1e15, first, second, third
end

for i = 1, #KEYS - 1 do
  local key, kind = KEYS[i + 1], ARGV[6 * i - 4]
  local quota, window, burst = tonumber(ARGV[6 * i - 3]), tonumber(ARGV[6 * i - 2]), tonumber(ARGV[6 * i - 1])
  local mark_us, by = tonumber(ARGV[6 * i]), tonumber(ARGV[6 * i + 1])
  local mark_ms = floor(mark_us / 1000)
  local window_end = now_ms - now_ms % window + window

  if kind == 'fixed' then
    local readable, counted_end, count = numbers(key, '^(%d+):(%d+)$', by)
    if readable and counted_end ~= window_end and by > 0 then
      counted_end, count = window_end, 0
    end
    if readable and counted_end == mark_ms and mark_ms == window_end then
      redis.call('SET', key, whole(window_end) .. ':' .. whole(max(count + by, 0)))
      redis.call('PEXPIREAT', key, whole(window_end))
    end
  elseif kind == 'sliding' then
    local readable, counted_end, used, before = numbers(key, '^(%d+):(%d+):(%d+)$', by)
    if readable then
      if counted_end == window_end - window then
        used, before = 0, used
      elseif counted_end ~= window_end then
        used, before = 0, 0
      end
      if mark_ms == window_end then
        used = max(used + by, 0)
      elseif mark_ms == window_end - window then
        before = max(before + by, 0)
      end
      redis.call('SET', key, whole(window_end) .. ':' .. whole(used) .. ':' .. whole(before))
      redis.call('PEXPIREAT', key, whole(window_end + window))
    end
  elseif kind == 'bucket' then
    local readable, at, level = numbers(key, '^(%d+):([%d.e+-]+)$', by)
    if readable then
      local window_us = window * 1000
      level = level and max(level - max(now_us - at, 0) * quota / window_us, 0) or 0
      if by < 0 then
        -- What has leaked out since it was taken is there again already.
        local gone = ceil(max(now_us - mark_us, 0) * quota / window_us)
        level = max(level - max(-by - gone, 0), 0)
      elseif mark_us + window_us > now_us then
        level = max(min(level + by, burst), level)
      end
      redis.call('SET', key, whole(now_us) .. ':' .. string.format('%.17g', level))
      redis.call('PEXPIRE', key, whole(ceil(level * window / quota) + 1))
    end
  elseif type(redis.pcall('ZREMRANGEBYSCORE', key, '-inf', whole(now_us - window * 1000))) == 'number' then
    if by < 0 then
      local mark = whole(mark_us)
      for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, mark, mark, 'LIMIT', 0, -by)) do
        redis.call('ZREM', key, member)
      end
    elseif mark_us + window * 1000 > now_us then
      local at = whole(min(mark_us, now_us))
      local first = redis.call('ZCOUNT', key, at, at)
      -- Members that a grant of the same moment has given back may leave gaps: these have names of their own.
      -- A log never holds more than its quota: what is beyond it refuses no longer.
      local more = min(by, max(quota - redis.call('ZCARD', key), 0))
      for from = first + 1, first + more, 500 do
        local members = {}
        for n = from, min(from + 499, first + more) do
          members[#members + 1] = at
          members[#members + 1] = at .. '+' .. whole(n)
        end
        redis.call('ZADD', key, unpack(members))
      end
      redis.call('PEXPIRE', key, whole(window + 1))
    end
  end
end

return 1
