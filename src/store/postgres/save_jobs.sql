insert into job (seq, id, record, status, caller, question, created_at, finished_at, unnotified)
select * from unnest($1::bigint[], $2::uuid[], $3::bytea[], $4::smallint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::boolean[])
on conflict (seq) do update set
    record = excluded.record, status = excluded.status, question = excluded.question,
    finished_at = excluded.finished_at, unnotified = excluded.unnotified
