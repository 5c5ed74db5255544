"""What a Redis store does in one step, as scripts that the server runs. ``redis.store`` has the names of its keys.

Every script takes the prefix of all keys and the model's fingerprint, then what is its own.
"""

from __future__ import annotations

_COMMON = """
local all = ARGV[1]
local own = all .. ARGV[2] .. ':'

local function next_mark()
    local now = redis.call('TIME')
    local mark = math.max(now[1] * 1000000 + now[2], (tonumber(redis.call('GET', all .. 'mark')) or 0) + 1)
    mark = string.format('%.0f', mark)
    redis.call('SET', all .. 'mark', mark)
    return mark
end

local function forget(key)
    redis.call('ZREM', own .. 'marks', key)
    redis.call('DEL', all .. 'chunk:' .. key)
    return redis.call('HDEL', own .. 'entries', key)
end

local function note_removal(number)
    if number > 0 then redis.call('SET', own .. 'removed', next_mark()) end
    return number
end

local function take(source)
    local key = redis.call('HGET', own .. 'sources', source)
    if key then
        redis.call('HDEL', own .. 'sources', source)
        redis.call('SREM', own .. 'of:' .. key, source)
    end
    return key
end
"""

PUT = f"""{_COMMON}
redis.call('SET', all .. 'chunk:' .. ARGV[3], ARGV[5])
redis.call('HSET', own .. 'entries', ARGV[3], ARGV[4])
redis.call('ZADD', own .. 'marks', next_mark(), ARGV[3])
"""
"""A chunk: key, entry, data."""

FORGET = f"""{_COMMON}
local number = 0
for i = 3, #ARGV do number = number + forget(ARGV[i]) end
return note_removal(number)
"""
"""Chunks by key; references to them stay. Returns how many there were."""

REMOVE = f"""{_COMMON}
local number = 0
for i = 3, #ARGV do
    for _, source in ipairs(redis.call('SMEMBERS', own .. 'of:' .. ARGV[i])) do take(source) end
    number = number + forget(ARGV[i])
end
return note_removal(number)
"""
"""Chunks by key, and the references to them. Returns how many chunks there were."""

POINT = f"""{_COMMON}
local before = {{}}
for i = 3, #ARGV, 2 do
    local key = take(ARGV[i])
    if key then before[#before + 1] = key end
end
for i = 3, #ARGV, 2 do
    redis.call('HSET', own .. 'sources', ARGV[i], ARGV[i + 1])
    redis.call('SADD', own .. 'of:' .. ARGV[i + 1], ARGV[i])
end
return before
"""
"""Sources and the keys they refer to, in turn. Returns the keys that they referred to before."""

DROP = f"""{_COMMON}
local before = {{}}
for i = 3, #ARGV do
    local key = take(ARGV[i])
    if key then before[#before + 1] = key end
end
return before
"""
"""Sources to forget. Returns the keys that they referred to."""

COLLECT = f"""{_COMMON}
local number = 0
for i = 3, #ARGV do
    if redis.call('SCARD', own .. 'of:' .. ARGV[i]) == 0 then number = number + forget(ARGV[i]) end
end
return note_removal(number)
"""
"""Chunks by key, to be deleted where no source refers to them. Returns how many there were."""
