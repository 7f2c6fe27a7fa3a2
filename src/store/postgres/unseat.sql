select count(pg_terminate_backend(pid))
from pg_stat_activity, seat
where starts_with(application_name, 'ceoagent ' || holder || ' ')
  and datname = current_database()
  and holder <> $2
  and extract(epoch from beat_at)::float8 = $1
