with replaced as (select length(entry) as bytes from audit where id = $1)
insert into audit (id, entry) values ($1, $2)
on conflict (id) do update set entry = excluded.entry
returning length(entry) - coalesce((select bytes from replaced), 0)
