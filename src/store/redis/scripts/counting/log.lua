
-- Sliding log: a sorted set with a member for each unit, by the clock in us when it was granted.
local function log(step, counter, limit, units, mark_us)
  local key, window_us = counter.key, limit.window * 1000
  if step == 'read' then
    local dropped = redis.pcall('ZREMRANGEBYSCORE', key, '-inf', whole(now_us - window_us))
    if type(dropped) == 'table' then
      return dropped
    end
    counter.used = call('ZCARD', key)
    local last = call('ZRANGE', key, -1, -1, 'WITHSCORES')
    if last[2] and tonumber(last[2]) > now_us then
      -- The clock was set back: units of later moments count from now. Their new names are like no other.
      local at = whole(now_us)
      local late = call('ZRANGEBYSCORE', key, '(' .. at, '+inf')
      call('ZREMRANGEBYSCORE', key, '(' .. at, '+inf')
      for from = 1, #late, 500 do
        local members = {}
        for n = from, min(from + 499, #late) do
          members[#members + 1] = at
          members[#members + 1] = at .. '<' .. late[n]
        end
        call('ZADD', key, unpack(members))
      end
      call('PEXPIRE', key, whole(limit.window + 1))
    end
    counter.room = limit.quota - counter.used
    return nil
  elseif step == 'reset' then
    -- The unit whose leaving makes room; where there is room, the last one to leave.
    local place = units == 0 and counter.used - limit.quota or -1
    local found = call('ZRANGE', key, place, place, 'WITHSCORES')
    return found[2] and tonumber(found[2]) + window_us - now_us or 0
  end
  local at, origin = whole(now_us), '-'
  if step == 'adjust' then
    if units < 0 then
      local mark = whole(mark_us)
      for _, member in ipairs(call('ZRANGEBYSCORE', key, mark, mark, 'LIMIT', 0, -units)) do
        call('ZREM', key, member)
      end
      return
    elseif mark_us + window_us <= now_us then
      return
    end
    -- A log never holds more than its quota, because further units would not refuse longer. A grant of the same moment
    -- that was given back may have left gaps between its members, so these members have names of their own.
    at, origin, units = whole(min(mark_us, now_us)), '+', min(units, max(counter.room, 0))
  end
  -- Several grants may fall into one microsecond: members go on from those that are there.
  local first = call('ZCOUNT', key, at, at)
  for from = first + 1, first + units, 500 do
    local members = {}
    for n = from, min(from + 499, first + units) do
      members[#members + 1] = at
      members[#members + 1] = at .. origin .. whole(n)
    end
    call('ZADD', key, unpack(members))
  end
  call('PEXPIRE', key, whole(limit.window + 1))
end
