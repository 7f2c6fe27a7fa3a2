select j.id, d.caller, d.host
from (select seq, caller, host, next_at, row_number() over (partition by caller, host order by next_at, seq) as place
      from delivery where next_at <= $1) d
join job j using (seq)
where d.place <= $2
order by d.next_at, d.seq
