-- Writes this node's beat, and reads all nodes and the format of the database. A process without a connection has ended: it gets no
-- calls.
with own as (
    update node set beat_at = clock_timestamp(), is_ready = $3 where name = $1 and incarnation = $2 returning name
)
select name, incarnation, (extract(epoch from beat_at) * 1000000)::bigint,
       is_ready, version,
       lower(formats), upper(formats) - 1, own.name is not null, number,
       exists (
           select from pg_stat_activity
           where datname = current_database() and starts_with(application_name, 'ceoagent ' || process || ' ')
       )
from format left join node on true left join own using (name)
