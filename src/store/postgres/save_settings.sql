insert into setting (name, value) select * from unnest($1::bytea[], $2::bytea[])
on conflict (name) do update set value = excluded.value
