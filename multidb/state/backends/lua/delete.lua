-- KEYS: value, index. ARGV: name. Returns how many values there were.
local deleted = call('DEL', KEYS[1])
call('ZREM', KEYS[2], ARGV[1])
settle(KEYS[2])
return deleted
