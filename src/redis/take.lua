-- Takes from a bucket that refills evenly, by the server's clock. Times are in microseconds.
-- KEYS: the bucket, which holds when it is full again. ARGV: how long a refill of what is taken lasts, and of all.
-- Gives 1, or 0 if it has not as much, and when it is full again from now on.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local price, full = tonumber(ARGV[1]), tonumber(ARGV[2])
local before = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
-- More than all is missing only if the clock was set back. Stored also with a refusal, so that it refills from now on.
before = math.min(before, now + full)
local after = math.max(before + price, now)
local granted = 1
if price > 0 and after - now > full then
    granted, after = 0, before
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.floor((after - now) / 1000) + 1)
return {granted, after - now}
