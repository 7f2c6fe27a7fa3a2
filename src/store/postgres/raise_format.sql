update format set number = $1
where number < $1 and not exists (select from node where not formats @> $1::integer)
