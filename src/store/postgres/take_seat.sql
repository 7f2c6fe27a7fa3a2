update seat set holder = $1, epoch = epoch + 1, beat_at = clock_timestamp(), clock = $3
where $2 or holder = $1
returning epoch
