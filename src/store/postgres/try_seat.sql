-- The lock is free too while a healthy holder connects again. So another process ($4) takes it only once the holder has left
-- the seat or has no connection any more, and only if it may ($2). The holder itself takes it unless it leaves ($3), also if
-- its take-over was not answered. In this order: a lock that was taken in vain would stay.
select case
           when $3 and holder = $4 or $2 and (holder = '' or not exists (
               select from pg_stat_activity
               where datname = current_database() and starts_with(application_name, 'ceoagent ' || holder || ' ')
           ))
           then pg_try_advisory_lock($1)
           else false
       end,
       extract(epoch from beat_at)::float8,
       (select coalesce(max(n), 0) from feed)
from seat
