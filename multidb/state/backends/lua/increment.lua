-- KEYS: counter. ARGV: amount, span. Returns the new value as text, or nothing when it would leave 64 bits.
local first = ARGV[2] ~= '' and redis.call('EXISTS', KEYS[1]) == 0
local reply = redis.pcall('INCRBY', KEYS[1], ARGV[1])
if type(reply) == 'table' then
  local code = string.match(tostring(reply.err), '^%S+')
  if code == 'ERR' or code == 'WRONGTYPE' then
    return false
  end
  return reply
end
if first then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
-- Not the reply: a number of Lua has 53 bits.
return redis.call('GET', KEYS[1])
