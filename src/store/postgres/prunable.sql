(select id, finished_at, unnotified
 from (select id, finished_at, unnotified, row_number() over (order by finished_at, seq) as place
       from job where status >= 2 and not unnotified order by finished_at, seq limit $5) ended
 where place <= $1 or finished_at < $2)
union all
(select id, finished_at, unnotified
 from (select id, finished_at, unnotified, row_number() over (order by finished_at, seq) as place
       from job where status >= 2 and unnotified order by finished_at, seq limit $5) ended
 where place <= $3 or finished_at < $4)
limit $5
