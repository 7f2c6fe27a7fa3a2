select clock, (extract(epoch from clock_timestamp()) * 1000)::bigint from seat
