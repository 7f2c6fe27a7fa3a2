with requests as (delete from request where seq = any($1)),
     attempts as (delete from attempt where seq = any($1)),
     deliveries as (delete from delivery where seq = any($1))
delete from job where seq = any($1)
