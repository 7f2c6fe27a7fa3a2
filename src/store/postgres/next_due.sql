select min(next_at) from delivery where next_at > $1
