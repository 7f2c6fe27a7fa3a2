delete from attempt a
using unnest($1::bigint[]) as long (seq)
where a.seq = long.seq
  and a.number <= (select number from attempt where seq = long.seq order by number desc offset $2 limit 1)
