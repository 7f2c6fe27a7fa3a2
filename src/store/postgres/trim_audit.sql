with oldest as (
    select id, length(entry) as bytes from audit where id <> $1 order by id limit 64
), surplus as (
    select id, bytes, sum(bytes) over (order by id) - bytes as bytes_before from oldest
), removed as (
    delete from audit where id in (select id from surplus where id < $2 or bytes_before < $3) returning length(entry) as bytes
)
select coalesce(sum(bytes), 0)::bigint from removed
