-- No UTF-8 text has the byte ff.
select name, value from setting where name >= $1 and name < $1 || '\xff'::bytea order by name
