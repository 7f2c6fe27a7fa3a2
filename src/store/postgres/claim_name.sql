-- Asks for the lock of a node's name. Then the process that is known by this name, and its newest beat.
select pg_try_advisory_lock($1, $2), process, (extract(epoch from beat_at) * 1000000)::bigint
from (select) as once left join node on name = $3
