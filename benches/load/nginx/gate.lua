-- Admission as the gateway does it: verify the JWT, read its record, check the route, count the request, say what is left.
-- Generous to nginx where it is not the point: claims are picked out with patterns instead of being parsed as JSON.

local ffi = require "ffi"
local base64 = require "ngx.base64"
local redis = require "redis"

-- nginx is linked with libcrypto.
ffi.cdef [[
const void *EVP_sha256(void);
unsigned char *HMAC(const void *digest, const void *key, int key_len,
                    const unsigned char *data, size_t data_len, unsigned char *out, unsigned int *out_len);
int CRYPTO_memcmp(const void *a, const void *b, size_t len);
]]
local crypto = ffi.C
local SHA256_BYTES = 32
local mac = ffi.new("unsigned char[?]", SHA256_BYTES)

-- KEYS[1]: the token. ARGV: limit, window in seconds. Answers: 1 if admitted, what remains, seconds to the reset.
local COUNT = redis.script [[
local now = tonumber(redis.call('TIME')[1])
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local key = 'count:{' .. KEYS[1] .. '}:' .. (now - now % window)
local reset = window - now % window
local used = tonumber(redis.call('GET', key) or '0')
if used >= limit then return {0, 0, reset} end
redis.call('INCR', key)
if used == 0 then redis.call('EXPIRE', key, window) end
return {1, limit - used - 1, reset}
]]

local Gate = {}
Gate.__index = Gate

local function refuse(status)
  ngx.header["Cache-Control"] = "no-store"
  ngx.header["Content-Type"] = "application/problem+json"
  ngx.status = status
  ngx.say('{"type":"about:blank","status":', status, '}')
  return ngx.exit(status)
end

-- The api_key of a token that is signed and not expired, or nil.
function Gate:verify(token)
  local signed, payload, signature = token:match("^([%w_-]+%.([%w_-]+))%.([%w_-]+)$")
  if not signed then return nil end
  local header = base64.decode_base64url(signed:match("^[^.]+"))
  if not header or header:match('"alg"%s*:%s*"([^"]*)"') ~= "HS256" then return nil end
  local given = base64.decode_base64url(signature)
  if not given or #given ~= SHA256_BYTES then return nil end
  crypto.HMAC(crypto.EVP_sha256(), self.secret, #self.secret, signed, #signed, mac, nil)
  if crypto.CRYPTO_memcmp(mac, given, SHA256_BYTES) ~= 0 then return nil end
  local claims = base64.decode_base64url(payload)
  if not claims then return nil end
  local exp = tonumber(claims:match('"exp"%s*:%s*(%d+)'))
  if not exp or exp <= ngx.time() then return nil end
  return claims:match('"api_key"%s*:%s*"([^"]*)"')
end

local function may(record, path)
  for pattern in record.allowed_routes:gmatch('"([^"]*)"') do
    if pattern == path or (pattern:sub(-1) == "*" and path:sub(1, #pattern - 1) == pattern:sub(1, -2)) then
      return true
    end
  end
  return false
end

function Gate:admit()
  local authorization = ngx.var.http_authorization
  local token = authorization and authorization:match("^[Bb]earer +(.+)$")
  local api_key = token and self:verify(token)
  if not api_key then return refuse(401) end

  local store = redis.connect(self.redis_host, self.redis_port)
  if not store then return refuse(503) end
  local record = store:hash("HGETALL", "token:" .. api_key)
  if not record then return refuse(503) end
  if record.api_key ~= api_key then return refuse(401) end
  if not may(record, ngx.var.uri) then return refuse(403) end
  local counted = store:run(COUNT, api_key, self.limit, self.window_seconds)
  if not counted then return refuse(503) end
  store:release()

  local admitted, remaining, reset = counted[1], counted[2], counted[3]
  ngx.header["RateLimit-Policy"] = self.policy
  ngx.header["RateLimit"] = '"default";r=' .. remaining .. ";t=" .. reset
  ngx.header["X-RateLimit-Limit"] = self.limit
  ngx.header["X-RateLimit-Remaining"] = remaining
  ngx.header["X-RateLimit-Reset"] = reset
  if admitted == 0 then
    ngx.header["Retry-After"] = reset
    return refuse(429)
  end
  ngx.var.token_id = api_key
end

function Gate.new(options)
  options.policy = '"default";q=' .. options.limit .. ";w=" .. options.window_seconds
  return setmetatable(options, Gate)
end

return Gate
