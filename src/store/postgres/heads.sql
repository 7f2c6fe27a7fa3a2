select j.seq, j.id, j.record, d.body from job j left join delivery d using (seq) where j.seq > $1 order by j.seq limit $2
