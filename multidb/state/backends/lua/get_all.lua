-- KEYS: index. ARGV: what stands before a name in the key of its value. Returns name, value, name, value and so on.
-- The keys of the values are not in KEYS, as only the index knows them; their hash tag is that of the index.
local names = call('ZRANGEBYSCORE', KEYS[1], milliseconds(now()), '+inf')
local found = {}
for first = 1, #names, 1000 do
  local last = math.min(first + 999, #names)
  local keys = {}
  for i = first, last do
    keys[#keys + 1] = ARGV[1] .. names[i]
  end
  local values = call('MGET', unpack(keys))
  for i = first, last do
    local value = values[i - first + 1]
    if value then
      found[#found + 1] = names[i]
      found[#found + 1] = value
    end
  end
end
return found
