
-- Fixed window: `<window end in ms>:<units>`.
local function fixed(step, counter, limit, units, mark_us)
  if step == 'read' then
    local failure, counted_end, used = numbers(counter.key, '^(%d+):(%d+)$')
    counter.used = counted_end == limit.window_end and used or 0
    counter.room = limit.quota - counter.used
    return failure
  elseif step == 'reset' then
    return limit.window_end * 1000 - now_us
  elseif step == 'adjust' then
    if floor(mark_us / 1000) ~= limit.window_end or (units < 0 and counter.used == 0) then
      return
    end
    -- Beyond twice the quota the count grows no further: the window refuses everything anyhow.
    counter.used = max(min(counter.used + units, max(counter.used, 2 * limit.quota)), 0)
  end
  call('SET', counter.key, limit.start .. whole(counter.used), 'PX', limit.rest)
end
