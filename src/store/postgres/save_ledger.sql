insert into ledger (day, model, sums) select * from unnest($1::bigint[], $2::text[], $3::bytea[])
on conflict (day, model) do update set sums = excluded.sums
