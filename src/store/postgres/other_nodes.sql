select exists (
    select from pg_stat_activity
    where datname = current_database()
      and application_name like 'ceoagent %'
      and application_name <> 'ceoagent ' || $1::text
)
