delete from node where name = $1 and process = $2
