delete from setting where name = any($1)
