insert into delivery (seq, caller, host, next_at, failing, body)
select seq, coalesce(caller, 0), host, next_at, failing, body
from unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::boolean[], $6::bytea[])
     as new (seq, caller, host, next_at, failing, body)
on conflict (seq) do update set next_at = excluded.next_at, failing = excluded.failing, body = excluded.body
