select j.id, a.body
from job j cross join lateral (select body from attempt where seq = j.seq order by number desc limit 1) a
where j.id = any($1)
