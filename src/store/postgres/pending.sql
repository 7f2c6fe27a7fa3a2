select record from job where status < 2 order by seq
