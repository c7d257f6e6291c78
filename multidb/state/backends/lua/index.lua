-- Stands before each script that writes values. A user's index is a sorted set of the names of values, each by a
-- millisecond in which its value has ended: at most a minute after it did, and at most twice its life span. So a value
-- that is stored again and again moves in the index only now and then.

local call = redis.call

local clock
local function now()
  if not clock then
    local time = call('TIME')
    clock = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return clock
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
  if ends ~= '+inf' then
    local slack = math.min(ends - now(), 60000)
    local known = tonumber(call('ZSCORE', index, name) or '-inf')
    if known >= ends and known <= ends + slack then
      return
    end
    ends = ends + slack
  end
  if call('ZADD', index, ends, name) == 1 then
    call('ZREMRANGEBYSCORE', index, '-inf', '(' .. milliseconds(now()))
  end
  if ends == '+inf' then
    call('PERSIST', index)
  -- Where that prolongs the life of the index, its last value is this one.
  elseif call('PEXPIREAT', index, ends, 'GT') == 0 then
    settle(index)
  end
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
      ends = kept
    end
  else
    ends = now() + span
    call('SET', key, value, 'PXAT', ends)
  end
  enter(index, name, ends)
end
