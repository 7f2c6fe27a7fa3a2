update seat set beat_at = clock_timestamp(), clock = $2 where holder = $1
returning (select coalesce(max(n), 0) from feed)
