select j.id, j.seq, j.record, r.body,
       case when $9 then array(select a.body from attempt a where a.seq = j.seq order by a.number) else '{}' end
from job j left join request r on $8 and r.seq = j.seq
where j.seq > $1 and j.seq < $2
  and ($3::smallint[] is null or j.status = any($3))
  and ($4::bigint is null or j.caller = $4)
  and ($5::uuid[] is null or j.id = any($5))
  and ($6::bigint is null or j.created_at >= $6)
  and ($7::bigint is null or j.created_at < $7)
order by j.seq desc
limit $10
