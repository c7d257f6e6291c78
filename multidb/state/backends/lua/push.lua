-- KEYS: list. ARGV: item, the greatest length or ''.
local length = redis.call('RPUSH', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  return length
end
redis.call('LTRIM', KEYS[1], '-' .. ARGV[2], -1)
return redis.call('LLEN', KEYS[1])
