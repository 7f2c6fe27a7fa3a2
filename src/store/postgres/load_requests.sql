select j.id, r.body from job j join request r using (seq) where j.id = any($1)
