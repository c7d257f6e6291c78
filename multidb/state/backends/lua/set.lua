-- Stores any number of values. KEYS: value, index, and again. ARGV: name, value, span, and again.
-- Returns 1 for each value that is stored, the error for each that is not.
local replies = {}
for i = 1, #KEYS / 2 do
  local stored, failure = pcall(store, KEYS[2 * i - 1], KEYS[2 * i], ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i])
  replies[i] = stored and 1 or redis.error_reply(type(failure) == 'table' and failure.err or tostring(failure))
end
return replies
