insert into delivery (seq, caller, host, next_at, failing, body)
select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::boolean[], $6::bytea[])
on conflict (seq) do update set next_at = excluded.next_at, failing = excluded.failing, body = excluded.body
