select n, body from feed where n > $1 order by n limit $2
