-- Lets a token record expire earlier: its field expires_at and its key, and the key never later than before.
--
-- KEYS[1]   token:<id>
-- ARGV[1]   when it shall expire, in milliseconds since the epoch
-- ARGV[2]   the record as it was read: the field expires_at of a hash, empty where there is none, or the whole of a
--           string
-- ARGV[3]   the text to write in its place
--
-- Returns 1, or 0 when the record has changed since it was read; then nothing was written.

local kind = redis.call('TYPE', KEYS[1]).ok
local left_ms = redis.call('PTTL', KEYS[1])
if kind == 'hash' then
  if (redis.call('HGET', KEYS[1], 'expires_at') or '') ~= ARGV[2] then
    return 0
  end
  redis.call('HSET', KEYS[1], 'expires_at', ARGV[3])
elseif kind == 'string' then
  if redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
  end
  redis.call('SET', KEYS[1], ARGV[3])
else
  return 0
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expires_ms = tonumber(ARGV[1])
if left_ms >= 0 then
  expires_ms = math.min(expires_ms, now_ms + left_ms)
end
redis.call('PEXPIREAT', KEYS[1], expires_ms)
return 1
