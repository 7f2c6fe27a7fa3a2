select record from job where seq >= $1 order by seq limit 1
