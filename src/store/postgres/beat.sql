update seat set beat_at = clock_timestamp(), clock = $2 where holder = $1
