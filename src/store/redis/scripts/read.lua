-- Reads a token record and the remaining life of its key, at one moment.
--
-- KEYS[1]   token:<id>
-- ARGV[1]   most fields of a record that is read
-- ARGV[2]   most bytes of a record that is read: names and values of a hash, or the text of a string
--
-- Returns the milliseconds until the key expires (negative where it does not), the type of the key, and for a hash or
-- a string its content: names and values in turn, or the text. For a larger record the type is `large`, and the
-- content says how large it is. The size is asked for first, so that a large record costs no more than a small one.

local left_ms = redis.call('PTTL', KEYS[1])
local kind = redis.call('TYPE', KEYS[1]).ok
local max_fields, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])

if kind == 'hash' then
  local fields = redis.call('HLEN', KEYS[1])
  if fields > max_fields then
    return { left_ms, 'large', fields .. ' fields' }
  end
  local bytes = 0
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    bytes = bytes + #name + redis.call('HSTRLEN', KEYS[1], name)
  end
  if bytes > max_bytes then
    return { left_ms, 'large', bytes .. ' bytes' }
  end
  return { left_ms, kind, redis.call('HGETALL', KEYS[1]) }
elseif kind == 'string' then
  local bytes = redis.call('STRLEN', KEYS[1])
  if bytes > max_bytes then
    return { left_ms, 'large', bytes .. ' bytes' }
  end
  return { left_ms, kind, redis.call('GET', KEYS[1]) }
end
return { left_ms, kind }
