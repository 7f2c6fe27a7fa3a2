select key, body, job, expires_at from idempotency where key = any($1)
