select count(pg_terminate_backend(pid))
from pg_stat_activity, seat
where application_name = 'ceoagent ' || holder
  and datname = current_database()
  and clock_timestamp() - beat_at > make_interval(secs => $1)
