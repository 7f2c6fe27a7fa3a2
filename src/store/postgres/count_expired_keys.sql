select count(*) from (select from idempotency where expires_at <= $1 limit $2) expired
