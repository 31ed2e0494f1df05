-- Writes token records as hashes, each with its expiry; leaves alone what says something else.
--
-- KEYS[i]   token:<id>; in a cluster one key a call, for no two need share a slot
-- ARGV[1]   1 to replace records that differ, else 0
-- then for each key:
--   when the record expires, in milliseconds since the epoch; empty for never
--   how many texts follow
--   field, value, field, value, ...
--
-- Returns a word for each key:
--   written     there was none
--   replaced    there was another, and it was to be replaced
--   unchanged   it is there already
--   differs     there is another; nothing was written
--   expired     there is none, and this one has expired; nothing was written

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local replace = ARGV[1] == '1'

local function is_kept(key, first, last)
  if redis.call('TYPE', key).ok ~= 'hash' then
    return false
  end
  local kept = redis.call('HGETALL', key)
  if #kept ~= last - first + 1 then
    return false
  end
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
local function write(key, expires, first, last)
  local expires_ms = tonumber(expires)
  local answer = 'written'
  if redis.call('EXISTS', key) == 1 then
    if is_kept(key, first, last) then
      return 'unchanged'
    end
    if not replace then
      return 'differs'
    end
    redis.call('DEL', key)
    answer = 'replaced'
  elseif expires_ms and expires_ms <= now_ms then
    return 'expired'
  end
  -- A full Redis refuses the first write of a script only, which must be one that needs memory.
  redis.call('HSET', key, unpack(ARGV, first, last))
  if expires_ms then
    redis.call('PEXPIREAT', key, expires)
  end
  return answer
end

local answers = {}
local at = 2
for i, key in ipairs(KEYS) do
  local first = at + 2
  local last = at + 1 + tonumber(ARGV[at + 1])
  answers[i] = write(key, ARGV[at], first, last)
  at = last + 1
end
return answers
