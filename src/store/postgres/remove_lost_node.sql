delete from node
where name = $1 and incarnation = $2 and (extract(epoch from beat_at) * 1000000)::bigint = $3
