select count(*) filter (where status = 2),
       count(*) filter (where status = 3),
       count(*) filter (where status = 4),
       count(*) filter (where status >= 2 and unnotified),
       coalesce(max(seq), 0) + 1,
       (select coalesce(sum(length(entry)), 0)::bigint from audit)
from job
