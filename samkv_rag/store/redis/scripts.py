"""What a Redis store does in one step, as scripts that the server runs. ``redis.store`` has the names of its keys.

Every script takes the prefix of all keys and the model's fingerprint, then what is its own.
"""

from __future__ import annotations

_COMMON = """
local all = ARGV[1]
local own = all .. ARGV[2] .. ':'
local references = own .. 'references'

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
    local key = redis.call('HGET', references, 's:' .. source)
    if key then
        -- Deleting first: a full server then lets the rest of the script write.
        redis.call('HDEL', references, 's:' .. source)
        if redis.call('HINCRBY', references, 'n:' .. key, -1) < 1 then redis.call('HDEL', references, 'n:' .. key) end
    end
    return key
end

local function sources_of(keys)
    local found, cursor = {}, '0'
    repeat
        local part = redis.call('HSCAN', references, cursor, 'MATCH', 's:*', 'COUNT', 1000)
        cursor = part[1]
        for i = 1, #part[2], 2 do
            if keys[part[2][i + 1]] then found[#found + 1] = string.sub(part[2][i], 3) end
        end
    until cursor == '0'
    return found
end
"""

PUT = f"""{_COMMON}
redis.call('SET', all .. 'chunk:' .. ARGV[3], ARGV[5], 'EX', ARGV[6])
redis.call('HSET', own .. 'entries', ARGV[3], ARGV[4])
redis.call('ZADD', own .. 'marks', next_mark(), ARGV[3])
"""
"""A chunk: key, entry, data, the seconds that it is kept."""

FORGET = f"""{_COMMON}
local number = 0
for i = 3, #ARGV do
    if redis.call('EXISTS', all .. 'chunk:' .. ARGV[i]) == 0 then number = number + forget(ARGV[i]) end
end
return note_removal(number)
"""
"""Chunks by key that are evicted; references to them stay. Returns how many there were."""

REMOVE = f"""{_COMMON}
local number, referred, gone = 0, false, {{}}
for i = 3, #ARGV do
    gone[ARGV[i]] = true
    referred = referred or redis.call('HEXISTS', references, 'n:' .. ARGV[i]) == 1
end
if referred then
    for _, source in ipairs(sources_of(gone)) do take(source) end
end
for i = 3, #ARGV do number = number + forget(ARGV[i]) end
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
    redis.call('HSET', references, 's:' .. ARGV[i], ARGV[i + 1])
    redis.call('HINCRBY', references, 'n:' .. ARGV[i + 1], 1)
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
    if redis.call('HEXISTS', references, 'n:' .. ARGV[i]) == 0 then number = number + forget(ARGV[i]) end
end
return note_removal(number)
"""
"""Chunks by key, to be deleted where no source refers to them. Returns how many there were."""
