-- Announces each to all nodes, with the writer's connection ($2) that deleted it.
with deleted as (delete from setting where name = any($1) returning name)
select pg_notify('ceoagent_setting', $2::text || ' ' || encode(name, 'hex')) from deleted
