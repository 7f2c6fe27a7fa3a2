delete from attempt where (seq, number) in (select * from unnest($1::bigint[], $2::bigint[]))
