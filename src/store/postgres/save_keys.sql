insert into idempotency (key, body, job, expires_at)
select * from unnest($1::bytea[], $2::bytea[], $3::uuid[], $4::bigint[])
on conflict (key) do update set body = excluded.body, job = excluded.job, expires_at = excluded.expires_at
