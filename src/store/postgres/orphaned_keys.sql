select key, body, job, expires_at, caller from idempotency i
where key > $1 and not exists (select from job where id = i.job)
order by key limit $2
