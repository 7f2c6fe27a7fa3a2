select j.id, j.seq
from delivery d join job j using (seq)
where d.failing and d.seq < $1 and ($2::bigint is null or d.caller = $2)
order by d.seq desc
limit $3
