-- Takes from a bucket that refills evenly, by the server's clock. Times are in microseconds.
-- KEYS: the bucket, which holds when it is full again. ARGV: how long a refill of what is taken lasts, and of all.
-- Gives 1 and when it is full again from now on, or 0 if it has not as much.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local price, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local before = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local after = math.max(before + price, now)
if price > 0 and after - now > full then
    return {0, before - now}
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.floor((after - now) / 1000) + 1)
return {1, after - now}
