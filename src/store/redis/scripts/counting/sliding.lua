
-- Sliding window: `<window end in ms>:<units>:<units of the window before>`. The last number is `counter.before`.
local function sliding(step, counter, limit, units, mark_us)
  local quota, window, window_end = limit.quota, limit.window, limit.window_end
  if step == 'read' then
    local failure, counted_end, used, before = numbers(counter.key, '^(%d+):(%d+):(%d+)$')
    if counted_end == window_end then
      counter.used, counter.before = used, before
    elseif counted_end == window_end - window then
      counter.used, counter.before = 0, used
    else
      counter.used, counter.before = 0, 0
    end
    -- The part of it that lies within the rest of the window, rounded up; division alone may round down across a whole
    -- number.
    local weight = counter.before * (window_end - now_ms)
    local part = fmod(weight, window)
    counter.room = quota - counter.used - (weight - part) / window - (part > 0 and 1 or 0)
    return failure
  elseif step == 'reset' then
    local used, before = counter.used, counter.before
    if units == 0 then
      -- A unit fits again once an earlier count weighs little enough: in this window the count of the window before, in
      -- the next window the count of this window. That count may weigh `spare` units, as it does when `fits` of its
      -- window is left.
      local is_now = used < quota
      local spare = is_now and quota - 1 - used or quota - 1
      local count = is_now and before or used
      local fits = count > 0 and (spare * window - fmod(spare * window, count)) / count or window
      local rest = window_end - now_ms
      local wait = is_now and max(rest - fits, 0) or rest + max(window - fits, 0)
      return max(wait * 1000 - now_us % 1000, 0)
    elseif used > 0 then
      return (window_end + window) * 1000 - now_us
    end
    return before > 0 and window_end * 1000 - now_us or 0
  elseif step == 'adjust' then
    local mark_ms = floor(mark_us / 1000)
    if mark_ms == window_end and (units > 0 or counter.used > 0) then
      -- Beyond twice the quota a count grows no further.
      counter.used = max(min(counter.used + units, max(counter.used, 2 * quota)), 0)
    elseif mark_ms == window_end - window and (units > 0 or counter.before > 0) then
      counter.before = max(min(counter.before + units, max(counter.before, 2 * quota)), 0)
    else
      return
    end
  end
  local value = limit.start .. whole(counter.used) .. ':' .. whole(counter.before)
  call('SET', counter.key, value, 'PX', whole(window_end + window - now_ms))
end
