delete from feed where n <= $1 and n < (select max(n) from feed)
