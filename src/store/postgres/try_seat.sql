select $2 and pg_try_advisory_lock($1), extract(epoch from beat_at)::float8, (select coalesce(max(n), 0) from feed)
from seat
