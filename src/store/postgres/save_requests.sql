insert into request (seq, body) select * from unnest($1::bigint[], $2::bytea[])
