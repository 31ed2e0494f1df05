-- Notes that a gateway is alive, and counts the gateways that are alive.
--
-- KEYS[1]      tollgate:gateways, a sorted set of gateways by when they were last seen (ms)
-- ARGV[1]      the gateway's id
-- ARGV[2]      how long a gateway counts after it was last seen, in milliseconds
--
-- Returns how many gateways were seen within that time, this gateway included, and 1 if this gateway was not in the
-- set before: then Redis has lost its data, or the gateway is new. Gateways that were not seen are removed, and the
-- whole set expires when no gateway is left.

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local oldest = now_ms - tonumber(ARGV[2])

local now = string.format('%.0f', now_ms)
local added = redis.call('ZADD', KEYS[1], now, ARGV[1])
-- The clock was set back: a gateway that was last seen later than now is taken to have been seen now.
for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  redis.call('ZADD', KEYS[1], now, gateway)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', oldest))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return { redis.call('ZCARD', KEYS[1]), added }
