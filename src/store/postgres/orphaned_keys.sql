-- The next keys, and whether their job is gone. Each job is looked up: a plan must not read all of them.
select k.key, k.body, k.job, k.expires_at, k.caller, j.is_there is null
from (select * from idempotency where key > $1 order by key limit $2) k
left join lateral (select true as is_there from job where id = k.job limit 1) j on true
order by k.key
