-- KEYS: value, index. ARGV: name, span, which is never 'keep'.
if call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local ends = '+inf'
if ARGV[2] == '' then
  call('PERSIST', KEYS[1])
else
  ends = now() + ARGV[2]
  call('PEXPIREAT', KEYS[1], ends)
end
enter(KEYS[2], ARGV[1], ends)
return 1
