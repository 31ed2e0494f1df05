
-- A limit of a kind: fixed, sliding, bucket or log.
local function new_limit(kind, quota, window, burst)
  local window_end = now_ms - now_ms % window + window
  local count = kind == 'fixed' and fixed or kind == 'sliding' and sliding or kind == 'bucket' and bucket or log
  return {
    count = count, quota = quota, window = window, burst = burst, window_end = window_end,
    -- Formatted once, because formatting for each subject would be expensive.
    start = whole(window_end) .. ':', rest = whole(window_end - now_ms),
  }
end
