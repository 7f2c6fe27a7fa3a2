-- Announces each to all nodes, with the writer's connection ($3) that saved it.
with saved as (
    insert into setting (name, value) select * from unnest($1::bytea[], $2::bytea[])
    on conflict (name) do update set value = excluded.value
    returning name
)
select pg_notify('ceoagent_setting', $3::text || ' ' || encode(name, 'hex')) from saved
