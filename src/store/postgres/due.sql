-- From one caller's host to the next by the index. So what others have due is not read, however much it is.
with recursive place as (
    (select caller, host from delivery where next_at is not null order by caller, host limit 1)
    union all
    select next.caller, next.host
    from place p
    cross join lateral (
        select caller, host from delivery
        where next_at is not null and (caller, host) > (p.caller, p.host)
        order by caller, host limit 1
    ) next
)
select j.id, p.caller, p.host
from place p
cross join lateral (
    select seq, next_at from delivery
    where caller = p.caller and host = p.host and next_at <= $1
    order by next_at, seq limit $2
) d
cross join lateral (select id from job where seq = d.seq limit 1) j
order by d.next_at, d.seq
