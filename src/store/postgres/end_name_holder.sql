-- Ends the connection that holds the lock of a node's name, if its application name starts with $3.
select count(pg_terminate_backend(pid))
from pg_locks join pg_stat_activity using (pid)
where locktype = 'advisory'
  and classid = $1::integer::oid and objid = $2::integer::oid and objsubid = 2
  and pg_locks.database = (select oid from pg_database where datname = current_database())
  and granted
  and pid <> pg_backend_pid()
  and starts_with(application_name, $3)
