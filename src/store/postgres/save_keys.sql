insert into idempotency (key, body, job, expires_at, caller)
select * from unnest($1::bytea[], $2::bytea[], $3::uuid[], $4::bigint[], $5::bigint[])
on conflict (key) do update set body = excluded.body, job = excluded.job, expires_at = excluded.expires_at, caller = excluded.caller
