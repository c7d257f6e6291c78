-- KEYS: value, index. ARGV: name, what must be there, value, span. What is absent counts as null.
local stored = call('GET', KEYS[1]) or 'null'
if stored ~= ARGV[2] then
  return 0
end
store(KEYS[1], KEYS[2], ARGV[1], ARGV[3], ARGV[4])
return 1
