-- Of one job: unlike an array of ids, one id lets the server keep its plan.
select j.id, j.record, r.body, d.body, array(select a.body from attempt a where a.seq = j.seq order by a.number)
from job j left join request r using (seq) left join delivery d using (seq)
where j.id = $1
