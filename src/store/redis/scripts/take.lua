-- Takes up to `wanted` requests from every limit of one subject at once, or none.
--
-- KEYS[i]       the counter of limit i: quota:{<subject>}:<limit name>:<window seconds>[:<kind>]
-- ARGV[1]       wanted: requests asked for, a whole number
-- ARGV[4i-2]    kind of limit i: fixed, sliding, log or bucket
-- ARGV[4i-1]    quota of limit i: requests a window admits
-- ARGV[4i]      window of limit i, in milliseconds
-- ARGV[4i+1]    burst of limit i: requests a bucket holds; otherwise the quota
--
-- Returns whole numbers: the store's clock in microseconds, requests granted, then for each limit, after
-- the grant, the requests left and the microseconds until that changes (see quota/standing.rs).
--
-- quota/counter.rs computes the same. What a counter holds:
--   fixed     `<window end in ms>:<requests>`
--   sliding   `<window end in ms>:<requests>:<requests of the window before>`
--   bucket    `<clock in us>:<level>`, the level a double with all its digits
--   log       a sorted set with a member for each request, by the clock in us when it was granted
-- The time it belongs to is part of the value, so a counter that outlives it (an expiry that was lost or
-- is late, a clock that was set back) counts as nothing, whatever its expiry says. Windows are multiples
-- of their length since the epoch; every whole number stays below 2^53, where Lua's doubles are exact.
--
-- A value of any other shape is an error: refusing is safer than guessing how much was used.

local floor, ceil, max, min, fmod = math.floor, math.ceil, math.max, math.min, math.fmod

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = clock[1] * 1000 + floor(clock[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

-- a / b of whole numbers, rounded down or up; division alone may round across a whole number.
local function down(a, b)
  return (a - fmod(a, b)) / b
end
local function up(a, b)
  local rest = fmod(a, b)
  return (a - rest) / b + (rest > 0 and 1 or 0)
end

local granted = tonumber(ARGV[1])
local counters = {}

for i, key in ipairs(KEYS) do
  local kind = ARGV[4 * i - 2]
  local quota, window, burst = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1])
  local window_end = now_ms - now_ms % window + window
  local c = { kind = kind, quota = quota, window = window, burst = burst, window_end = window_end }
  counters[i] = c

  if kind == 'log' then
    local dropped = redis.pcall('ZREMRANGEBYSCORE', key, '-inf', whole(now_us - window * 1000))
    if type(dropped) == 'table' then
      return dropped
    end
    c.used = redis.call('ZCARD', key)
    c.room = quota - c.used
  else
    local value = redis.pcall('GET', key)
    if type(value) == 'table' then
      return value
    end
    local first, second, third
    if value then
      if kind == 'fixed' then
        first, second = string.match(value, '^(%d+):(%d+)$')
      elseif kind == 'sliding' then
        first, second, third = string.match(value, '^(%d+):(%d+):(%d+)$')
      else
        first, second = string.match(value, '^(%d+):([%d.e+-]+)$')
      end
      first, second, third = tonumber(first), tonumber(second), tonumber(third)
      if not second or second >= 1e15 or (third and third >= 1e15) then
        return redis.error_reply('BADCOUNTER ' .. key .. ' does not hold a counter')
      end
    end
    if kind == 'bucket' then
      c.level = 0
      if value then
        local elapsed = max(now_us - first, 0)
        c.level = max(second - elapsed * quota / (window * 1000), 0)
      end
      c.room = floor(burst - c.level)
    else
      c.used, c.before = 0, 0
      if first == window_end then
        c.used, c.before = second, third or 0
      elseif third and first == window_end - window then
        c.before = second
      end
      c.room = quota - c.used
      if kind == 'sliding' then
        c.room = c.room - up(c.before * (window_end - now_ms), window)
      end
    end
  end
  c.room = max(c.room, 0)
  granted = min(granted, c.room)
end

local answer = { now_us, granted }

for i, key in ipairs(KEYS) do
  local c = counters[i]
  local window_us = c.window * 1000
  if granted > 0 then
    if c.kind == 'fixed' then
      c.used = c.used + granted
      redis.call('SET', key, whole(c.window_end) .. ':' .. whole(c.used))
      redis.call('PEXPIREAT', key, whole(c.window_end))
    elseif c.kind == 'sliding' then
      c.used = c.used + granted
      redis.call('SET', key, whole(c.window_end) .. ':' .. whole(c.used) .. ':' .. whole(c.before))
      redis.call('PEXPIREAT', key, whole(c.window_end + c.window))
    elseif c.kind == 'bucket' then
      c.level = c.level + granted
      redis.call('SET', key, whole(now_us) .. ':' .. string.format('%.17g', c.level))
      redis.call('PEXPIRE', key, whole(ceil(c.level * c.window / c.quota) + 1))
    else
      -- Several grants may fall into one microsecond: members go on from those that are there.
      local first = redis.call('ZCOUNT', key, whole(now_us), whole(now_us))
      local at = whole(now_us)
      for from = first + 1, first + granted, 500 do
        local members = {}
        for n = from, min(from + 499, first + granted) do
          members[#members + 1] = at
          members[#members + 1] = at .. '-' .. whole(n)
        end
        redis.call('ZADD', key, unpack(members))
      end
      redis.call('PEXPIRE', key, whole(c.window + 1))
      c.used = c.used + granted
    end
  end

  local left = c.room - granted
  local reset_us = c.window_end * 1000 - now_us
  if c.kind == 'sliding' then
    if left == 0 then
      local rest, wait = c.window_end - now_ms, nil
      if c.used < c.quota then
        local fits = c.before > 0 and down((c.quota - 1 - c.used) * c.window, c.before) or c.window
        wait = max(rest - fits, 0)
      else
        local fits = c.used > 0 and down((c.quota - 1) * c.window, c.used) or c.window
        wait = rest + max(c.window - fits, 0)
      end
      reset_us = max(wait * 1000 - now_us % 1000, 0)
    elseif c.used > 0 then
      reset_us = reset_us + window_us
    elseif c.before == 0 then
      reset_us = 0
    end
  elseif c.kind == 'bucket' then
    local above = left == 0 and c.level - (c.burst - 1) or c.level
    reset_us = max(ceil(above * window_us / c.quota), 0)
  elseif c.kind == 'log' then
    -- The request whose leaving makes room; where there is room, the last one to leave.
    local place = left == 0 and c.used - c.quota or -1
    local found = redis.call('ZRANGE', key, place, place, 'WITHSCORES')
    reset_us = found[2] and tonumber(found[2]) + window_us - now_us or 0
  end
  answer[#answer + 1] = left
  answer[#answer + 1] = reset_us
end

return answer
