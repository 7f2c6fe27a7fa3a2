-- Adds a piece to a text. KEYS: the text. ARGV: the piece's place in bytes, the piece, after how many seconds without
-- another piece the text is removed. Gives the bytes of the text. A piece behind a gap is not added.
local place = tonumber(ARGV[1])
if place == 0 then
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
    return #ARGV[2]
end
local length = redis.call('STRLEN', KEYS[1])
if length < place then
    return length
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('SETRANGE', KEYS[1], place, ARGV[2])
