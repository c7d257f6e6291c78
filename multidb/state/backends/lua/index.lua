-- Stands before each script that writes values. A user's index is a sorted set of the names of values, each by the
-- millisecond in which its value ends.

local call = redis.call

local function now()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function milliseconds(number)
  return string.format('%.0f', number)
end

-- Lets the index end with the last of its values.
local function settle(index)
  local last = call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
  if last == 'inf' then
    call('PERSIST', index)
  elseif last then
    call('PEXPIREAT', index, last)
  end
end

-- A new name makes room: those of values that have ended go.
local function enter(index, name, ends)
  if call('ZADD', index, ends, name) == 1 then
    call('ZREMRANGEBYSCORE', index, '-inf', '(' .. milliseconds(now()))
  end
  settle(index)
end

-- Stores a value for `span` milliseconds; '': until it is deleted; 'keep': as long as what was there.
local function store(key, index, name, value, span)
  local ends = '+inf'
  if span == '' then
    call('SET', key, value)
  elseif span == 'keep' then
    call('SET', key, value, 'KEEPTTL')
    local kept = call('PEXPIRETIME', key)
    if kept >= 0 then
      ends = milliseconds(kept)
    end
  else
    ends = milliseconds(now() + span)
    call('SET', key, value, 'PXAT', ends)
  end
  enter(index, name, ends)
end
