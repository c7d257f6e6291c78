-- KEYS: index. ARGV: what stands before a name in the key of its value. Returns how many values there were.
local names = redis.call('ZRANGE', KEYS[1], 0, -1)
local deleted = 0
for first = 1, #names, 1000 do
  local keys = {}
  for i = first, math.min(first + 999, #names) do
    keys[#keys + 1] = ARGV[1] .. names[i]
  end
  deleted = deleted + redis.call('UNLINK', unpack(keys))
end
redis.call('DEL', KEYS[1])
return deleted
