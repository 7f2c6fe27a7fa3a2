select min(seq), max(seq) from job
