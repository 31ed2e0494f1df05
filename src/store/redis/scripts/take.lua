-- Takes requests for one subject or several: each is decided by itself, at one moment. Of a subject, up to
-- `wanted` requests are taken from every limit at once, or none.
--
-- KEYS          the counters of each subject's limits, one subject after another:
--               quota:{<subject>}:<limit name>:<window seconds>[:<kind>]
-- ARGV          one for each run of subjects that have the same limits, in MessagePack: how many limits these are, then
--               for each of them
--   kind        fixed, sliding, log or bucket
--   quota       requests a window admits
--   window      in milliseconds
--   burst       requests a bucket holds; otherwise the quota
--               and then for each subject `wanted`: requests asked for
--
-- Returns an array of whole numbers in MessagePack: the store's clock in microseconds, then for each subject the
-- requests granted, and for each of its limits, after the grant, the requests left and the microseconds until that
-- changes (see quota/standing.rs). Packed, because each element of an array of Redis' own costs both sides more.
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
-- A value of any other shape is an error: refusing is safer than guessing how much was used. Beside others its
-- subject is granted -1, and must ask alone to hear why.

local floor, ceil, max, min, fmod = math.floor, math.ceil, math.max, math.min, math.fmod

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = clock[1] * 1000 + floor(clock[2] / 1000)
local answer = { now_us }

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

-- Takes for the subject whose counters come after so many keys. Returns what is wrong with them.
local function take(limits, wanted, keys_before)
  local granted = wanted
  local counters = {}

  for i, limit in ipairs(limits) do
    local key = KEYS[keys_before + i]
    local kind, quota, window, window_end = limit.kind, limit.quota, limit.window, limit.window_end
    local c = { key = key }
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
        c.room = floor(limit.burst - c.level)
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

  answer[#answer + 1] = granted
  for i, limit in ipairs(limits) do
    local c = counters[i]
    local key, kind, quota, window, window_end = c.key, limit.kind, limit.quota, limit.window, limit.window_end
    local window_us = window * 1000
    if granted > 0 then
      if kind == 'fixed' then
        c.used = c.used + granted
        redis.call('SET', key, limit.start .. whole(c.used), 'PX', limit.rest)
      elseif kind == 'sliding' then
        c.used = c.used + granted
        local value = limit.start .. whole(c.used) .. ':' .. whole(c.before)
        redis.call('SET', key, value, 'PX', whole(window_end + window - now_ms))
      elseif kind == 'bucket' then
        c.level = c.level + granted
        local value = whole(now_us) .. ':' .. string.format('%.17g', c.level)
        redis.call('SET', key, value, 'PX', whole(ceil(c.level * window / quota) + 1))
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
        redis.call('PEXPIRE', key, whole(window + 1))
        c.used = c.used + granted
      end
    end

    local left = c.room - granted
    local reset_us = window_end * 1000 - now_us
    if kind == 'sliding' then
      if left == 0 then
        local rest, wait = window_end - now_ms, nil
        if c.used < quota then
          local fits = c.before > 0 and down((quota - 1 - c.used) * window, c.before) or window
          wait = max(rest - fits, 0)
        else
          local fits = c.used > 0 and down((quota - 1) * window, c.used) or window
          wait = rest + max(window - fits, 0)
        end
        reset_us = max(wait * 1000 - now_us % 1000, 0)
      elseif c.used > 0 then
        reset_us = reset_us + window_us
      elseif c.before == 0 then
        reset_us = 0
      end
    elseif kind == 'bucket' then
      local above = left == 0 and c.level - (limit.burst - 1) or c.level
      -- A level that no bucket has would not fit into a whole number.
      reset_us = min(max(ceil(above * window_us / quota), 0), 9007199254740992)
    elseif kind == 'log' then
      -- The request whose leaving makes room; where there is room, the last one to leave.
      local place = left == 0 and c.used - quota or -1
      local found = redis.call('ZRANGE', key, place, place, 'WITHSCORES')
      reset_us = found[2] and tonumber(found[2]) + window_us - now_us or 0
    end
    answer[#answer + 1] = left
    answer[#answer + 1] = reset_us
  end
end

-- The limits that a run begins with, and where its first subject is.
local function described(run)
  local limits, at = {}, 2
  for i = 1, run[1] do
    local quota, window, burst = run[at + 1], run[at + 2], run[at + 3]
    local window_end = now_ms - now_ms % window + window
    limits[i] = {
      kind = run[at], quota = quota, window = window, burst = burst, window_end = window_end,
      -- Written out once and not for each subject, which is dear.
      start = whole(window_end) .. ':', rest = whole(window_end - now_ms),
    }
    at = at + 4
  end
  return limits, at
end

local keys_before = 0
for _, packed in ipairs(ARGV) do
  local run = { cmsgpack.unpack(packed) }
  local limits, first = described(run)
  for at = first, #run do
    local failure = take(limits, run[at], keys_before)
    keys_before = keys_before + #limits
    if failure and #KEYS == #limits then
      return failure
    elseif failure then
      answer[#answer + 1] = -1
      for _ = 1, 2 * #limits do
        answer[#answer + 1] = 0
      end
    end
  end
end

return cmsgpack.pack(answer)
