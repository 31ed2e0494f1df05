
-- Changes the counts of a subject, limit by limit, where the counter still counts.
--
-- KEYS[1]       marks this adjustment as made: quota:{<subject>}:adjusted:<id>
-- KEYS[i+1]     the counter of limit i
-- ARGV[1]       how long the mark stays, in milliseconds
-- ARGV[6i-4]    kind of limit i, and its quota, window in milliseconds and burst, as for take.lua
-- ARGV[6i]      the time that the change belongs to, in microseconds since the epoch: the mark of the grant that is
--               given back, or the end of the window in which units were spent without Redis; 0 for the present window
-- ARGV[6i+1]    by how much to change the count; negative gives back
--
-- Returns 1, or 0 when the same adjustment was made before: giving back twice would admit too many.
-- A counter that cannot be read is left alone.

if not call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then
  return 0
end

for i = 1, #KEYS - 1 do
  local quota, window, burst = tonumber(ARGV[6 * i - 3]), tonumber(ARGV[6 * i - 2]), tonumber(ARGV[6 * i - 1])
  local limit = new_limit(ARGV[6 * i - 4], quota, window, burst)
  local mark_us, by = tonumber(ARGV[6 * i]), tonumber(ARGV[6 * i + 1])
  if mark_us == 0 then
    mark_us = limit.window_end * 1000
  end
  local counter = { key = KEYS[i + 1] }
  if not limit.count('read', counter, limit) then
    limit.count('adjust', counter, limit, by, mark_us)
  end
end

return 1
