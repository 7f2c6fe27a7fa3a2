select name, value from setting where name = any($1)
