-- KEYS: value, index. ARGV: name, span, the most bytes the value may have, and for each field to put in, sorted by
-- its name: the name, the name as JSON, the value as JSON.
-- Returns the value as it is now; 'dict' when what is stored is no dict, 'size' when it would be too large: neither is
-- the JSON of a dict.
--
-- The JSON is canonical: no spaces, names sorted by their bytes. So the two sorted sequences are merged member by
-- member, and what is not replaced is copied as it stands. cjson would not do: it turns large integers into floats and
-- empty lists into dicts. Strings are compared byte by byte, as '<' follows the locale of the server.

local QUOTE, BACKSLASH, COLON, COMMA, OPEN, CLOSE = 34, 92, 58, 44, 123, 125
local byte, find, sub = string.byte, string.find, string.sub

-- Returns where the string that starts at `at` ends, or nil.
local function end_of_string(text, at)
  while true do
    at = find(text, '"', at + 1, true)
    if not at then
      return nil
    end
    local before = at - 1
    while byte(text, before) == BACKSLASH do
      before = before - 1
    end
    if (at - before) % 2 == 1 then
      return at
    end
  end
end

-- Returns where the value that starts at `at` ends, or nil.
local function end_of_value(text, at)
  local first = byte(text, at)
  if first == QUOTE then
    return end_of_string(text, at)
  end
  if first ~= OPEN and first ~= 91 then
    local _, last = find(text, '^[%w.+-]+', at)
    return last
  end
  local depth = 0
  while at do
    local this = byte(text, at)
    if this == QUOTE then
      at = end_of_string(text, at)
      if not at then
        return nil
      end
    elseif this == OPEN or this == 91 then
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then
        return at
      end
    end
    at = find(text, '["{}%[%]]', at + 1)
  end
end

local SHORT = { b = '\b', f = '\f', n = '\n', r = '\r', t = '\t' }

-- Returns the string that is quoted between `first` and `last`. Only control characters stand as \u00XX.
local function unquoted(text, first, last)
  local inner = sub(text, first + 1, last - 1)
  local at = find(inner, '\\', 1, true)
  if not at then
    return inner
  end
  local parts, from = {}, 1
  while at do
    parts[#parts + 1] = sub(inner, from, at - 1)
    local letter = sub(inner, at + 1, at + 1)
    if letter == 'u' then
      parts[#parts + 1] = string.char(tonumber(sub(inner, at + 2, at + 5), 16) % 256)
      from = at + 6
    else
      parts[#parts + 1] = SHORT[letter] or letter
      from = at + 2
    end
    at = find(inner, '\\', from, true)
  end
  parts[#parts + 1] = sub(inner, from)
  return table.concat(parts)
end

local function precedes(one, other)
  for i = 1, math.min(#one, #other) do
    local left, right = byte(one, i), byte(other, i)
    if left ~= right then
      return left < right
    end
  end
  return #one < #other
end

-- Returns the dict `text` with the fields put in, or nil when it is no dict.
local function merged(text, fields, field)
  local parts, at = {}, 2
  local function put()
    parts[#parts + 1] = fields[field + 1] .. ':' .. fields[field + 2]
    field = field + 3
  end
  if byte(text, 1) ~= OPEN or byte(text, -1) ~= CLOSE then
    return nil
  end
  while byte(text, at) == QUOTE do
    local colon = (end_of_string(text, at) or #text) + 1
    local last = byte(text, colon) == COLON and end_of_value(text, colon + 1)
    if not last then
      return nil
    end
    local name = unquoted(text, at, colon - 1)
    while fields[field] and precedes(fields[field], name) do
      put()
    end
    if fields[field] == name then
      put()
    else
      parts[#parts + 1] = sub(text, at, last)
    end
    at = last + 1
    if byte(text, at) == COMMA then
      at = at + 1
    end
  end
  if at ~= #text then
    return nil
  end
  while fields[field] do
    put()
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'table' then
  if string.match(tostring(stored.err), '^%S+') == 'WRONGTYPE' then
    return 'dict'
  end
  return stored
end
local value = merged(stored or '{}', ARGV, 4)
if not value then
  return 'dict'
end
if #value > tonumber(ARGV[3]) then
  return 'size'
end
store(KEYS[1], KEYS[2], ARGV[1], value, ARGV[2])
return value
