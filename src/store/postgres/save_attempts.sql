insert into attempt (seq, number, body) select * from unnest($1::bigint[], $2::bigint[], $3::bytea[])
