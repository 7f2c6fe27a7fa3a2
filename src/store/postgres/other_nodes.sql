select exists (
    select from pg_stat_activity
    where datname = current_database()
      and application_name like 'ceoagent %'
      and not starts_with(application_name, 'ceoagent ' || $1::text || ' ')
)
