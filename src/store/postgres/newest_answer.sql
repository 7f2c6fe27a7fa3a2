select record from job where question = $1 and status = 2 order by finished_at desc, seq desc limit 1
