delete from ledger where day < $1
