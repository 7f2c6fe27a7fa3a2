-- Without the lock of its name, a process replaces no other.
insert into node (name, process, incarnation, version, formats, is_ready)
values ($1, $2, $3, $4, int4range($5, $6, '[]'), $7)
on conflict (name) do update
set process = excluded.process, incarnation = excluded.incarnation, version = excluded.version,
    formats = excluded.formats, is_ready = excluded.is_ready, beat_at = clock_timestamp()
where $8 or node.process = excluded.process
