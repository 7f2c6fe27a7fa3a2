select pg_try_advisory_lock($1), clock_timestamp() - beat_at > make_interval(secs => $2) from seat
