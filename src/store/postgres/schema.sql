-- Version 1 of the schema. Applied in one transaction under an advisory lock.
create schema if not exists ceoagent;
set local search_path to ceoagent;

-- A program can use this schema if it knows version `usable_from` or a newer one.
create table schema_version (version integer not null, usable_from integer not null);
insert into schema_version values (1, 1);

-- What nodes write in. One row.
create table format (id boolean primary key default true check (id), number integer not null);
insert into format (number) values (1);

-- Which node is the dispatcher. One row: each write transaction of its holder locks the key, the epoch, and compares it. A
-- beat changes no key, so it need not wait for a commit.
create table seat (
    id boolean primary key default true check (id),
    holder text not null default '',
    epoch bigint not null unique default 0,
    beat_at timestamptz not null default clock_timestamp(),
    clock bytea
);
insert into seat default values;

-- The processes that share the database. `process` names its connections, `formats` are those it can read. Beats of seconds
-- should find room on the page.
create table node (
    name text primary key,
    process text not null,
    incarnation bigint not null,
    version text not null,
    formats int4range not null,
    is_ready boolean not null,
    beat_at timestamptz not null default clock_timestamp()
) with (fillfactor = 20);

-- `record` is the job; the other columns repeat what statements look for. Times are milliseconds since 1970.
create table job (
    seq bigint primary key,
    id uuid not null unique,
    record bytea not null,
    status smallint not null,
    caller bigint,
    question bigint,
    created_at bigint not null,
    finished_at bigint,
    unnotified boolean not null
);
create index job_status on job (status, seq);
create index job_finished on job (finished_at, seq) where status >= 2 and not unnotified;
create index job_unnotified on job (finished_at, seq) where status >= 2 and unnotified;
create index job_answer on job (question, finished_at) where status = 2 and question is not null;

create table request (seq bigint primary key, body bytea not null);

create table attempt (
    seq bigint not null,
    number bigint not null,
    body bytea not null,
    primary key (seq, number)
);

create table delivery (
    seq bigint primary key,
    -- 0 is nobody.
    caller bigint not null,
    host text not null,
    next_at bigint,
    failing boolean not null,
    body bytea not null
);
create index delivery_due on delivery (next_at) where next_at is not null;
create index delivery_place on delivery (caller, host, next_at, seq) where next_at is not null;
create index delivery_failing on delivery (seq) where failing;

-- Idempotency keys. They outlive their jobs.
create table idempotency (
    key bytea primary key,
    body bytea not null,
    job uuid not null,
    expires_at bigint not null,
    caller bigint
);
create index idempotency_expires on idempotency (expires_at);

create table ledger (
    day bigint not null,
    model text not null,
    sums bytea not null,
    primary key (day, model)
);

create table setting (name bytea primary key, value bytea not null);

create table audit (id uuid primary key, entry bytea not null);

-- What each transaction changed, for the other nodes. Numbered in the order of the commits, without gaps. Old rows are deleted.
create table feed (n bigint primary key, body bytea not null);
alter table feed alter column body set storage external;
