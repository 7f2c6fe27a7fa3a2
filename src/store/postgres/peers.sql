select (extract(epoch from clock_timestamp()) * 1000)::bigint,
       array(select distinct application_name from pg_stat_activity
             where datname = current_database() and application_name like 'ceoagent %')
