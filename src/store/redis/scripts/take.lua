
-- Takes units for one or several subjects, each decided by itself. For a subject, up to `wanted` units are taken from
-- every limit at once, or no unit where a limit has less than `least` left.
--
-- KEYS          the counters of each subject's limits, one subject after another:
--               quota:{<subject>}:<limit name>:<window seconds>[:<kind>]
-- ARGV          an argument for each run of subjects that have the same limits, in MessagePack: how many limits these
--               are, then for each of them
--   kind        fixed, sliding, log or bucket
--   quota       units a window admits
--   window      in milliseconds
--   burst       units a bucket holds; otherwise the quota
--               and then for each subject
--   wanted      units asked for
--   least       the fewest units of use
--
-- Returns an array of whole numbers in MessagePack: the store's clock in microseconds, then for each subject the
-- units granted, and for each of its limits, after the grant, the units left and the microseconds until that
-- changes. The array is packed, because each element of a Redis array costs both sides more.
--
-- A subject with a counter that cannot be read is granted -1 beside others, and must ask alone to hear why.

local answer = { now_us }

-- Takes for the subject whose counters come after `keys_before` keys. Returns the error of a counter, if there is one.
local function take(limits, wanted, least, keys_before)
  local granted = wanted
  local counters = {}
  for i = 1, #limits do
    local limit = limits[i]
    local counter = { key = KEYS[keys_before + i], used = 0, before = 0, room = 0 }
    counters[i] = counter
    local failure = limit.count('read', counter, limit)
    if failure then
      return failure
    end
    counter.room = max(counter.room, 0)
    granted = min(granted, counter.room)
  end
  if granted < least then
    granted = 0
  end

  answer[#answer + 1] = granted
  for i = 1, #limits do
    local limit, counter = limits[i], counters[i]
    if granted > 0 then
      counter.used = counter.used + granted
      limit.count('write', counter, limit, granted)
    end
    local left = counter.room - granted
    answer[#answer + 1] = left
    answer[#answer + 1] = limit.count('reset', counter, limit, left)
  end
end

local keys_before = 0
for _, packed in ipairs(ARGV) do
  local run = { cmsgpack.unpack(packed) }
  local limits, at = {}, 2
  for i = 1, run[1] do
    limits[i] = new_limit(run[at], run[at + 1], run[at + 2], run[at + 3])
    at = at + 4
  end
  for subject = at, #run, 2 do
    local failure = take(limits, run[subject], run[subject + 1], keys_before)
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
