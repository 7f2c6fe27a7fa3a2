#!/bin/sh
# What the official image of PostgreSQL does at its start, of Debian's package: makes the database if there is none.
set -eu
bin="$(echo /usr/lib/postgresql/*/bin)"
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    "$bin/initdb" --auth-host=scram-sha-256 --auth-local=trust --pwfile=/tmp/password -U "$POSTGRES_USER" "$data" >/dev/null
    echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
    echo "create database $POSTGRES_USER;" | "$bin/postgres" --single -D "$data" postgres >/dev/null
fi
exec "$bin/postgres" -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
