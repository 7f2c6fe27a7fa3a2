delete from idempotency where key in (select key from idempotency where expires_at <= $1 order by expires_at limit $2)
