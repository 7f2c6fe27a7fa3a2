select exists (select from idempotency where key = $1 and expires_at > $2)
