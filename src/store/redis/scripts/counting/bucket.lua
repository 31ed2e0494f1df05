
-- Token bucket: `<clock in us>:<level>`, the level a double with all its digits. The level is `counter.used`.
local function bucket(step, counter, limit, units, mark_us)
  local quota, burst, window_us = limit.quota, limit.burst, limit.window * 1000
  if step == 'read' then
    local failure, at, level = numbers(counter.key, '^(%d+):([%d.e+-]+)$')
    counter.used = at and max(level - max(now_us - at, 0) * quota / window_us, 0) or 0
    counter.room = floor(burst - counter.used)
    if not at or at <= now_us then
      return failure
    end
    -- The clock was set back. The level leaks from now on, and not only once the clock has passed the old moment.
  elseif step == 'reset' then
    local above = units == 0 and counter.used - (burst - 1) or counter.used
    -- A level beyond that of any bucket would not fit into a whole number.
    return min(max(ceil(above * window_us / quota), 0), 9007199254740992)
  elseif step == 'adjust' then
    local level = counter.used
    if units > 0 and mark_us + window_us > now_us then
      counter.used = max(min(level + units, burst), level)
    elseif units < 0 and level > 0 and mark_us <= now_us then
      -- Units that have leaked out since they were taken are back already.
      local gone = ceil(max(now_us - mark_us, 0) * quota / window_us)
      counter.used = max(level - max(-units - gone, 0), 0)
    else
      return
    end
  end
  local value = whole(now_us) .. ':' .. format('%.17g', counter.used)
  call('SET', counter.key, value, 'PX', whole(ceil(counter.used * limit.window / quota) + 1))
end
