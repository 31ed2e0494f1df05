-- As much of a Redis client (RESP2) as the gate needs, on nginx's own sockets and connection pool.
-- Every function answers nil and a reason when the store fails; the connection is then not reused.

local POOL_SIZE = 128
local IDLE_MS = 60000
local TIMEOUT_MS = 1000

local Connection = {}
Connection.__index = Connection

local function read(socket)
  local line, reason = socket:receive()
  if not line then return nil, reason end
  local kind, rest = line:sub(1, 1), line:sub(2)
  if kind == "+" then return rest end
  if kind == ":" then return tonumber(rest) end
  if kind == "-" then return nil, rest end
  local size = tonumber(rest)
  if size < 0 then return false end
  if kind == "$" then
    local text
    text, reason = socket:receive(size + 2)
    return text and text:sub(1, size), reason
  end
  local list = {}
  for index = 1, size do
    local item
    item, reason = read(socket)
    if item == nil then return nil, reason end
    list[index] = item
  end
  return list
end

function Connection:call(...)
  local words = { "*" .. select("#", ...) .. "\r\n" }
  for index = 1, select("#", ...) do
    local word = tostring((select(index, ...)))
    words[index + 1] = "$" .. #word .. "\r\n" .. word .. "\r\n"
  end
  local sent, reason = self.socket:send(words)
  if not sent then return nil, reason end
  return read(self.socket)
end

-- A list of names and values as a table.
function Connection:hash(...)
  local list, reason = self:call(...)
  if not list then return nil, reason end
  local hash = {}
  for index = 1, #list, 2 do hash[list[index]] = list[index + 1] end
  return hash
end

-- Runs a script on one key, sending its text only where the server does not know it.
function Connection:run(script, key, ...)
  local answer, reason = self:call("EVALSHA", script.sha, 1, key, ...)
  if not answer and reason and reason:find("^NOSCRIPT") then
    return self:call("EVAL", script.text, 1, key, ...)
  end
  return answer, reason
end

function Connection:release()
  return self.socket:setkeepalive(IDLE_MS, POOL_SIZE)
end

local redis = {}

function redis.connect(host, port)
  local socket = ngx.socket.tcp()
  socket:settimeout(TIMEOUT_MS)
  local connected, reason = socket:connect(host, port, { pool_size = POOL_SIZE })
  if not connected then return nil, reason end
  return setmetatable({ socket = socket }, Connection)
end

function redis.script(text)
  local sha = ngx.sha1_bin(text):gsub(".", function(byte) return string.format("%02x", byte:byte()) end)
  return { text = text, sha = sha }
end

return redis
