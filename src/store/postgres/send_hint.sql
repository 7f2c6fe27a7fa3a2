select pg_notify('ceoagent_hint', $1::text)
