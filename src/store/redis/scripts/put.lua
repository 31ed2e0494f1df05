-- Writes a token record as a hash, and replaces the key's former value.
--
-- KEYS[1]      token:<id>
-- ARGV[1]      when the record expires, in milliseconds since the epoch; empty for never
-- ARGV[2..]    field, value, field, value, ...
--
-- Returns 1.

redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
if ARGV[1] ~= '' then
  redis.call('PEXPIREAT', KEYS[1], ARGV[1])
end
return 1
