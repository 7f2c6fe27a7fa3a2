select name, value from setting where substring(name from 1 for length($1::bytea)) = $1 order by name
