-- Writes token records as hashes, each with its expiry, and leaves records alone that differ.
--
-- KEYS[i]   token:<id>; in a cluster one key a call, for no two need share a slot
-- ARGV[1]   1 to replace records that differ, else 0
-- then for each key:
--   when the record expires, in milliseconds since the epoch; empty for never
--   how many texts follow
--   field, value, field, value, ...
--
-- Returns a word for each key:
--   written     there was no record
--   replaced    there was another record, which is replaced
--   unchanged   the same record is there already
--   differs     there is another record, and nothing was written
--   expired     the record to write has expired, and nothing was written
--
-- A full Redis refuses only the first write of a script. So a write that needs memory comes first, and writes that
-- need none come last.

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local replace = ARGV[1] == '1'

local function is_kept(key, first, last)
  if redis.call('TYPE', key).ok ~= 'hash' then
    return false
  end
  if redis.call('HLEN', key) * 2 ~= last - first + 1 then
    return false
  end
  local kept = redis.call('HGETALL', key)
  local fields = {}
  for i = 1, #kept, 2 do
    fields[kept[i]] = kept[i + 1]
  end
  for i = first, last, 2 do
    if fields[ARGV[i]] ~= ARGV[i + 1] then
      return false
    end
  end
  return true
end

-- The expiry is passed on as the text it came as: a large number would not survive as one of Lua's.
local function set_expiry(key, expires)
  if expires ~= '' then
    redis.call('PEXPIREAT', key, expires)
  else
    redis.call('PERSIST', key)
  end
end

-- Whether the key expires when its record does, give or take a second.
local function expires_so(key, expires_ms)
  local left_ms = redis.call('PTTL', key)
  if left_ms < 0 or not expires_ms then
    return left_ms < 0 and not expires_ms
  end
  return math.abs(now_ms + left_ms - expires_ms) <= 1000
end

local function drop_others(key, first, last)
  local named = {}
  for i = first, last, 2 do
    named[ARGV[i]] = true
  end
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if not named[field] then
      redis.call('HDEL', key, field)
    end
  end
end

-- Records that are there already, but for their keys' expiry.
local misdated = {}

local function write(key, expires, first, last)
  local expires_ms = tonumber(expires)
  local expired = expires_ms and expires_ms <= now_ms
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' then
    if is_kept(key, first, last) then
      if not expired and not expires_so(key, expires_ms) then
        misdated[#misdated + 1] = { key, expires }
      end
      return 'unchanged'
    end
    if not replace then
      return 'differs'
    end
  end
  if expired then
    return 'expired'
  end
  if kind ~= 'none' and kind ~= 'hash' then
    redis.call('DEL', key)
  end
  redis.call('HSET', key, unpack(ARGV, first, last))
  if kind == 'hash' then
    drop_others(key, first, last)
  end
  set_expiry(key, expires)
  return kind == 'none' and 'written' or 'replaced'
end

local answers = {}
local at = 2
for i, key in ipairs(KEYS) do
  local first = at + 2
  local last = at + 1 + tonumber(ARGV[at + 1])
  answers[i] = write(key, ARGV[at], first, last)
  at = last + 1
end
for _, record in ipairs(misdated) do
  set_expiry(record[1], record[2])
end
return answers
