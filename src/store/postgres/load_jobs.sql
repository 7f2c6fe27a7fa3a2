select j.id, j.seq, j.record, j.unnotified, d.body
from job j left join delivery d using (seq)
where j.id = any($1)
