select record from job where id = $1
