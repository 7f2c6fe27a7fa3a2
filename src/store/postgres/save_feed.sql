with written as (insert into feed (n, body) values ($1, $2))
select pg_notify('ceoagent', $1::text)
