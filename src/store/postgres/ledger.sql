select day, model, sums from ledger
