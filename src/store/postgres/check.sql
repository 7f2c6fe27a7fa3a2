select current_setting('server_version_num')::integer,
       current_setting('server_version'),
       pg_is_in_recovery() or current_setting('transaction_read_only')::boolean,
       current_setting('fsync'),
       current_setting('full_page_writes'),
       -- Set for the session, so that a later reload of the server's settings does not change it.
       set_config('synchronous_commit', current_setting('synchronous_commit'), false)
