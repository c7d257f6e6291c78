-- KEYS: value, index. ARGV: name, value, span.
store(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
return 1
