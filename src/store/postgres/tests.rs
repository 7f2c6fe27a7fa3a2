//! The store on a real server: the contract, what it refuses, and what a crash and a former holder of the seat can't do.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use secrecy::SecretString;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use self::database::Postgres;
use super::{
    Formats, Member, OpenError, PostgresStore,
    connection::{Database, Link},
    feed::MAX_ROWS,
    nodes::{KnownNodes, NAME_LOCK, name_number},
    schema::{LOCK, Schema},
    session::WRITE_LOCK,
};
use crate::{
    clock::Clock,
    job::{JobEvent, JobRecord, Owner},
    metrics::Metrics,
    store::{
        Insertion, JobStore, Registry as _, StoreError,
        contract::{self, Heard, at, job, named, request, success},
        nodes::{LEASE, Nodes as _},
    },
};

#[allow(dead_code, reason = "tests of the whole service use the rest")]
#[path = "../../../tests/it/database.rs"]
pub(crate) mod database;

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(180);

async fn open(url: &str) -> Result<PostgresStore, OpenError> {
    open_as(url, &Uuid::now_v7().to_string()).await
}

async fn open_as(url: &str, name: &str) -> Result<PostgresStore, OpenError> {
    open_member(url, &Member { name: Some(name), ..Member::COMMAND }).await
}

async fn open_member(url: &str, member: &Member<'_>) -> Result<PostgresStore, OpenError> {
    PostgresStore::open(&SecretString::from(url), member, Clock::manual(at(0)), Metrics::new()).await
}

/// Two nodes. The first has the seat.
async fn two_nodes(postgres: &Postgres) -> (PostgresStore, PostgresStore) {
    let url = postgres.create("jobs");
    let (first, second) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    assert!(!second.seat().is_free().await);
    (first, second)
}

async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it never happened");
}

async fn refusal(url: &str) -> String {
    Database::open(&SecretString::from(url), &[]).await.err().expect("it is refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let postgres = Postgres::start();
    let count = AtomicU32::new(0);
    contract::holds_for(async || {
        let name = format!("contract_{}", count.fetch_add(1, Ordering::Relaxed));
        let store = open(&postgres.create(&name)).await.unwrap();
        // It announces once that any setting may have changed, when it begins to listen.
        store.seat().is_free().await;
        store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_can_not_keep_the_promises_is_refused_in_words() {
    let mut postgres = Postgres::start();
    let url = postgres.create("jobs");
    open(&url).await.unwrap().close().await;
    for (setting, why) in [
        ("fsync", "a power cut loses acknowledged jobs"),
        ("full_page_writes", "a power cut can damage"),
        ("synchronous_commit", "a crash loses jobs"),
    ] {
        postgres.sql("postgres", &format!("alter system set {setting} = off"));
        postgres.sql("postgres", "select pg_reload_conf()");
        let refused = loop {
            // The server reads its settings soon after it was asked to.
            if let Err(refused) = Database::open(&SecretString::from(url.as_str()), &[]).await {
                break refused.to_string();
            }
        };
        assert!(refused.contains(&format!("{setting}=off, so {why}")), "{refused}");
        postgres.sql("postgres", &format!("alter system reset {setting}"));
        postgres.sql("postgres", "select pg_reload_conf()");
        while Database::open(&SecretString::from(url.as_str()), &[]).await.is_err() {}
    }
    postgres.sql("jobs", "alter database jobs set default_transaction_read_only = on");
    assert!(refusal(&url).await.contains("read-only"));
    postgres.sql("postgres", "alter database jobs reset default_transaction_read_only");
    postgres.sql("jobs", "update ceoagent.schema_version set version = 2");
    open(&url).await.expect("it can use the newer schema").close().await;
    postgres.sql("jobs", "update ceoagent.schema_version set usable_from = 2");
    assert!(refusal(&url).await.contains("schema version 2, and this program knows versions up to 1"));
    postgres.sql("jobs", "update ceoagent.schema_version set version = 0, usable_from = 0");
    assert!(refusal(&url).await.contains("needs 1 or newer: run `ceoagent migrate`"));
    assert!(refusal("postgres://[").await.contains("DATABASE_URL is not a URL"));
    assert!(refusal(&postgres.url("missing")).await.contains("database \"missing\" does not exist"));
    postgres.stop_immediately();
    assert!(refusal(&url).await.contains("can't use the database of DATABASE_URL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_compiles_no_statement_that_it_takes_for_long() {
    let postgres = Postgres::start();
    let database = Database::open(&SecretString::from(postgres.create("jobs")), &[]).await.unwrap();
    let link = database.connect().await.unwrap();
    link.client.batch_execute("set jit_above_cost to 0").await.unwrap();
    let plan = link.client.query("explain (analyze) select count(*) from pg_class", &[]).await.unwrap();
    let plan = plan.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>().join("\n");
    assert!(plan.contains("Aggregate") && !plan.contains("JIT"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_for_due_messages_and_for_keys_without_a_job_read_no_whole_table() {
    let postgres = Postgres::start();
    let database = Database::open(&SecretString::from(postgres.create("jobs")), &[]).await.unwrap();
    let link = database.connect().await.unwrap();
    let fill =
        "insert into job select n, gen_random_uuid(), '', 2, null, null, 0, 0, true from generate_series(1, 20000) n;
                insert into delivery select seq, 0, 'down.example', 0, false, '' from job;
                insert into idempotency select uuid_send(id), '', id, 0, null from job;
                analyze; set plan_cache_mode to force_generic_plan";
    link.client.batch_execute(fill).await.unwrap();
    let looks = [
        (include_str!("due.sql"), "bigint, bigint", "9, 20"),
        (include_str!("orphaned_keys.sql"), "bytea, bigint", "'', 1000"),
    ];
    for (sql, types, values) in looks {
        let prepare = format!("deallocate all; prepare look ({types}) as {sql}");
        link.client.batch_execute(&prepare).await.unwrap();
        let plan = link.client.simple_query(&format!("explain execute look ({values})")).await.unwrap();
        let plan = format!("{plan:?}");
        assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_loses_nothing_that_was_acknowledged_and_jobs_go_on() {
    let mut postgres = Postgres::start();
    let store = Arc::new(open(&postgres.create("jobs")).await.unwrap());
    let heard = Heard::of(&*store).await;
    let adding = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let mut accepted = Vec::new();
            let mut n = 0;
            loop {
                match store.insert(job(n), request(n)).await {
                    Ok(insertion) => accepted.push((n, insertion)),
                    Err(error) => return (accepted, error),
                }
                n += 1;
            }
        }
    });
    while heard.pending().len() < 20 {
        tokio::task::yield_now().await;
    }
    postgres.stop_immediately();
    let (accepted, error) = timeout(PATIENCE, adding).await.unwrap().unwrap();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(accepted.len() >= 20 && accepted.iter().all(|(_, insertion)| *insertion == Insertion::Accepted));
    postgres.start_again();
    let again = async {
        while store.trouble().is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    let pending: Vec<_> = heard.pending().into_iter().map(|job| job.id).collect();
    for (n, _) in &accepted {
        assert_eq!(store.get(job(*n).id).await.unwrap().unwrap().request, request(*n));
        assert!(pending.contains(&job(*n).id), "the feed was reset with all pending jobs");
    }
    contract::claim(&*store, 0, 100).await;
    store.transition(job(0).id, success(1, 10), at(101)).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_database_can_be_read_while_the_writer_connects_again() {
    let postgres = Postgres::start();
    let store = open(&postgres.create("jobs")).await.unwrap();
    store.insert(job(0), request(0)).await.unwrap();
    // As a server whose disk is full.
    let full = "create function ceoagent.fail() returns trigger language plpgsql as
                    $$ begin raise 'full' using errcode = 'disk_full'; end $$;
                create trigger fails before insert on ceoagent.feed execute function ceoagent.fail()";
    postgres.sql("jobs", full);
    // The writer reads it at its start.
    let other = store.shared.database.connect().await.unwrap();
    let lock = "set idle_in_transaction_session_timeout to 0; begin; lock table ledger";
    other.client.batch_execute(lock).await.unwrap();
    store.insert(job(1), request(1)).await.unwrap_err();
    until(|| store.shared.trouble().is_some()).await;
    assert_eq!(store.find(job(0).id).await, Ok(Some(job(0))));
    let read = store.get(job(0).id).await.unwrap().unwrap();
    assert_eq!((read.request, store.shared.trouble().is_some()), (request(0), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_seat_writes_nothing_more() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let first = open(&url).await.unwrap();
    assert!(first.seat().is_free().await);
    first.insert(job(0), request(0)).await.unwrap();
    let second = open(&url).await.unwrap();
    assert!(!second.seat().is_free().await, "one node has it");
    // As a node that took over while the first one was paused.
    postgres.sql("jobs", "update ceoagent.seat set holder = 'other', epoch = epoch + 1");
    let refused = first.insert(job(1), request(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    timeout(PATIENCE, first.lost().cancelled()).await.unwrap();
    first.close().await;
    timeout(PATIENCE, second.seat().taken()).await.unwrap();
    assert_eq!(second.find(job(0).id).await, Ok(Some(job(0))));
    assert_eq!(second.find(job(1).id).await, Ok(None), "nothing was written");
    second.insert(job(1), request(1)).await.unwrap();
}

/// Changes jobs as clients and workers do, on whichever node, for this many times. Refusals are part of it.
async fn change_at_random(store: &PostgresStore, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for time in 1..150 {
        let (n, now) = (random.random_range(0..12), at(time));
        let id = job(n).id;
        let outcome = match random.random_range(0..8) {
            0..3 => store.import(vec![JobRecord::fresh(job(n), request(n))], None).await.map(drop),
            3 => store.claim(id, Owner::ANY, None, now).await.map(drop),
            4 => store.transition(id, success(1, 10), now).await.map(drop),
            5 => store.transition(id, JobEvent::Cancel { at_risk: None }, now).await.map(drop),
            6 => store.transition(id, JobEvent::Requeue { run_at: now }, now).await.map(drop),
            _ => store.remove(vec![id], now).await.map(drop),
        };
        assert!(!matches!(outcome, Err(StoreError::Unavailable { .. })), "seed {seed}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_change_at_the_same_time_each_of_them_hears_and_none_of_it_is_lost() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let (first, second) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    let heard = [Heard::of(&first).await, Heard::of(&second).await];
    tokio::join!(change_at_random(&first, 1), change_at_random(&second, 2));
    let third = open(&url).await.unwrap();
    let read = Heard::of(&third).await;
    let is_same = || heard.iter().all(|heard| (heard.pending(), heard.totals()) == (read.pending(), read.totals()));
    let same = async {
        while !is_same() {
            tokio::task::yield_now().await;
        }
    };
    let same = timeout(PATIENCE, same).await;
    assert!(same.is_ok(), "{:#?}", (heard[0].pending(), heard[1].pending(), read.pending()));
    let mut by_id = BTreeMap::<_, usize>::new();
    for job in read.pending() {
        *by_id.entry(job.id).or_default() += 1;
    }
    assert!(by_id.values().all(|count| *count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_that_comes_to_two_nodes_at_once_stands_for_one_job() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let (first, second) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    for round in 0..20 {
        let (n, other) = (2 * round, 2 * round + 1);
        let name = u8::try_from(round).unwrap();
        let with_key = |n| named(n, name, 1);
        let (one, two) =
            tokio::join!(first.insert(with_key(n), request(n)), second.insert(with_key(other), request(n)));
        match (one.unwrap(), two.unwrap()) {
            (Insertion::Accepted, Insertion::Existing(known)) => assert_eq!(known, job(n).id),
            (Insertion::Existing(known), Insertion::Accepted) => assert_eq!(known, job(other).id),
            both => panic!("{both:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_misses_a_part_of_the_feed_reads_all_jobs_again() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let (first, second) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    let heard = Heard::of(&second).await;
    first.insert(job(0), request(0)).await.unwrap();
    // As if the rows between had been deleted as old.
    postgres.sql("jobs", "update ceoagent.feed set n = n + 10; notify ceoagent, '11'");
    first.insert(job(1), request(1)).await.unwrap();
    let starting = open(&url).await.unwrap();
    starting.insert(job(2), request(2)).await.unwrap();
    until(|| heard.pending() == [job(0), job(1), job(2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_of_the_database_the_node_that_had_the_seat_has_it_still() {
    let mut postgres = Postgres::start();
    let url = postgres.create("jobs");
    let (first, second) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    assert!(first.seat().is_free().await);
    postgres.stop_immediately();
    let is_noticed = async {
        while first.trouble().is_none() || second.trouble().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, is_noticed).await.unwrap();
    postgres.start_again();
    // The other one asks for the seat again, and does not get it.
    for store in [&second, &first] {
        let works = async {
            while store.trouble().is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, works).await.unwrap();
    }
    first.insert(job(0), request(0)).await.unwrap();
    assert!(!first.lost().is_cancelled() && !second.seat().is_free().await);
    first.close().await;
    timeout(PATIENCE, second.seat().taken()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_and_changed_settings_reach_every_node() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let (one, other) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    other.seat().is_free().await;
    let mut watch = other.watch();
    for mut hints in [one.hints(), other.hints()] {
        one.send_hint("a client waits").await.unwrap();
        assert_eq!(timeout(PATIENCE, hints.recv()).await.unwrap().unwrap(), "a client waits");
    }
    one.put("key/a".to_owned(), "{}".to_owned()).await.unwrap();
    assert_eq!(timeout(PATIENCE, watch.recv()).await.unwrap().unwrap(), "key/a");
    assert_eq!(other.prefix("key/").await.unwrap(), [("key/a".to_owned(), "{}".to_owned())]);
    one.delete("key/a".to_owned()).await.unwrap();
    assert_eq!(timeout(PATIENCE, watch.recv()).await.unwrap().unwrap(), "key/a");
    let are_live = async {
        while ![&one, &other].into_iter().all(|store| store.is_watch_live(Duration::from_secs(1))) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, are_live).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hears_of_a_changed_setting_while_its_writer_waits_for_its_turn() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let store = Arc::new(open(&url).await.unwrap());
    assert!(store.seat().is_free().await);
    let mut watch = store.watch();
    let database = Database::open(&SecretString::from(url.as_str()), &[]).await.unwrap();
    let (other, third) = (database.connect().await.unwrap(), database.connect().await.unwrap());
    let begin = "set idle_in_transaction_session_timeout to 0; begin";
    other.client.batch_execute(&format!("{begin}; select pg_advisory_xact_lock({WRITE_LOCK})")).await.unwrap();
    let inserting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.insert(job(0), request(0)).await }
    });
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    until(|| postgres.sql("jobs", waiting) == "1").await;
    // As the transaction before the one that has the turn.
    save_setting(&third, "another").await;
    assert_eq!(timeout(PATIENCE, watch.recv()).await.unwrap().unwrap(), "key/a");
    assert!(!inserting.is_finished());
    other.client.batch_execute("commit").await.unwrap();
    inserting.await.unwrap().unwrap();
}

/// As a writer's connection of this name does.
async fn save_setting(link: &Link, name: &str) {
    let (names, values) = (vec![&b"key/a"[..]], vec![&b"{}"[..]]);
    link.client.execute(include_str!("save_settings.sql"), &[&names, &values, &name]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_hears_of_a_setting_that_its_former_connection_still_commits() {
    let postgres = Postgres::start();
    let store = open(&postgres.create("jobs")).await.unwrap();
    store.seat().is_free().await;
    let database = &store.shared.database;
    let former = database.writer.lock().clone();
    let other = database.connect().await.unwrap();
    store.insert(job(0), request(0)).await.unwrap();
    postgres.sql("jobs", "select pg_terminate_backend(pid) from pg_stat_activity where query = 'commit'");
    until(|| *database.writer.lock() != former).await;
    while store.insert(job(1), request(1)).await.is_err() {}
    let mut watch = store.watch();
    let newest = database.writer.lock().clone();
    save_setting(&other, &newest).await;
    store.put("key/b".to_owned(), "{}".to_owned()).await.unwrap();
    assert_eq!(timeout(PATIENCE, watch.recv()).await.unwrap().unwrap(), "key/b", "its writer announces its own");
    save_setting(&other, &former).await;
    assert_eq!(timeout(PATIENCE, watch.recv()).await.unwrap().unwrap(), "key/a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_dispatcher_has_read_all_that_was_written_before_it_took_the_seat() {
    let postgres = Postgres::start();
    let (first, second) = two_nodes(&postgres).await;
    let _heard = Heard::of(&second).await;
    first.insert(job(0), request(0)).await.unwrap();
    let read = || second.shared.state.read().n;
    until(|| read() == 1).await;
    let other = first.shared.database.connect().await.unwrap();
    let begin = "set idle_in_transaction_session_timeout to 0; begin";
    other.client.batch_execute(&format!("{begin}; select pg_advisory_xact_lock({WRITE_LOCK})")).await.unwrap();
    first.close().await;
    until(|| postgres.sql("jobs", "select count(*) from pg_locks where locktype = 'advisory' and not granted") == "1")
        .await;
    let rows = MAX_ROWS * 2 + 1;
    let insert = format!("insert into feed select n + more, body from feed, generate_series(1, {rows}) more; commit");
    other.client.batch_execute(&insert).await.unwrap();
    timeout(PATIENCE, second.seat().taken()).await.unwrap();
    assert_eq!(read(), 1 + rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_see_each_other_and_give_no_calls_to_one_that_starts_or_has_ended() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let first = open_as(&url, "a:1").await.unwrap();
    let own = *first.nodes().own().borrow();
    assert!(first.nodes().ready().is_empty(), "it starts");
    let second = open_as(&url, "b:1").await.unwrap();
    let other = *second.nodes().own().borrow();
    first.accept_calls(true);
    until(|| second.nodes().ready() == [own]).await;
    assert_eq!(first.nodes().ready(), [own], "the second one starts");
    second.accept_calls(true);
    until(|| first.nodes().ready() == [own, other] && second.nodes().ready() == [other, own]).await;
    first.accept_calls(false);
    assert_eq!(first.nodes().ready(), [other], "the rule for others holds for the node itself");
    until(|| second.nodes().ready() == [other]).await;
    first.accept_calls(true);
    until(|| second.nodes().ready() == [other, own]).await;
    second.drain().await;
    until(|| first.nodes().ready() == [own]).await;
    assert_eq!(second.nodes().ready(), [own]);
    assert!(first.nodes().may_run(other) && second.nodes().may_run(own), "its calls may still end");
    second.close().await;
    assert_eq!(postgres.sql("jobs", "select name from ceoagent.node"), "a:1");
    until(|| !first.nodes().may_run(other)).await;
    assert_eq!(first.nodes().ready(), [own]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_belongs_to_one_live_process_and_is_free_as_soon_as_that_one_is_gone() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let first = open_as(&url, "a:1").await.unwrap();
    let former = *first.nodes().own().borrow();
    let refused = open_as(&url, "a:1").await.err().unwrap().to_string();
    assert!(refused.contains("as the node a:1") && refused.contains("PORT=8081"), "{refused}");
    // As a kill: nothing is ended in order.
    drop(first);
    let again = open_as(&url, "a:1").await.unwrap();
    let now = *again.nodes().own().borrow();
    assert!(now.follows(former) && again.nodes().may_run(now) && !again.nodes().may_run(former));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_another_has_replaced_under_its_name_ends() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let first = open_as(&url, "a:1").await.unwrap();
    // As a process that started while the first one was silent, ended its connection, and then registered.
    let database = Database::open(&SecretString::from(url.as_str()), &[]).await.unwrap();
    let other = database.connect().await.unwrap();
    other.client.batch_execute("set lock_timeout to 0; set statement_timeout to 0").await.unwrap();
    let lock = format!("select pg_advisory_lock({NAME_LOCK}, {})", name_number("a:1"));
    let end_holder = async {
        let locks = "from pg_locks where locktype = 'advisory' and objsubid = 2 and";
        until(|| postgres.sql("jobs", &format!("select count(*) {locks} not granted")) == "1").await;
        postgres.sql("jobs", &format!("select pg_terminate_backend(pid) {locks} granted"));
    };
    tokio::join!(other.client.batch_execute(&lock), end_holder).0.unwrap();
    postgres.sql("jobs", "update ceoagent.node set process = 'other', incarnation = incarnation + 1");
    timeout(PATIENCE, first.lost().cancelled()).await.unwrap();
    let told = first.insert(job(0), request(0)).await.unwrap_err().to_string();
    assert!(!told.contains("seat"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_take_over_was_not_answered_takes_the_seat_again_after_an_outage() {
    let postgres = Postgres::start();
    let (first, second) = two_nodes(&postgres).await;
    let node = &second.shared.database.node;
    let outage =
        "select pg_terminate_backend(pid) from pg_stat_activity where starts_with(application_name, 'ceoagent ";
    postgres.sql("jobs", &format!("update ceoagent.seat set holder = '{node}'; {outage}{node} ')"));
    timeout(PATIENCE, first.lost().cancelled()).await.unwrap();
    drop(first);
    timeout(PATIENCE, second.seat().taken()).await.unwrap();
    while second.insert(job(0), request(0)).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_beats_loses_its_row_and_takes_a_new_incarnation() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let lease = Duration::from_secs(3);
    let member = |name| Member { name: Some(name), lease, ..Member::COMMAND };
    let (first, second) = (open_member(&url, &member("a:1")).await.unwrap(), open(&url).await.unwrap());
    second.accept_calls(true);
    assert!(first.seat().is_free().await);
    let dead = Owner::new("dead", 7);
    let row = "insert into ceoagent.node values ('dead', 'p', 7, '1.0.0', '[1,1]', true)";
    postgres.sql("jobs", row);
    until(|| {
        assert!(!first.nodes().ready().contains(&dead), "its process has no connection");
        !first.nodes().may_run(dead)
    })
    .await;
    assert_eq!(postgres.sql("jobs", "select count(*) from ceoagent.node where name = 'dead'"), "0");
    // As a dispatcher that has taken the second node for lost.
    let mut own = second.nodes().own();
    let former = *own.borrow_and_update();
    postgres.sql("jobs", "delete from ceoagent.node where name <> 'a:1'");
    timeout(PATIENCE, own.changed()).await.unwrap().unwrap();
    let now = *own.borrow();
    assert!(now.follows(former));
    until(|| second.nodes().ready().contains(&own.borrow()) && !first.nodes().may_run(former)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_gives_up_its_calls_before_its_lease_is_over() {
    for lease in [LEASE, Duration::from_secs(1)] {
        let nodes = KnownNodes::new(&Member { name: Some("a:1"), lease, ..Member::COMMAND });
        let (mut own, began) = (nodes.own(), Instant::now());
        nodes.registers(nodes.incarnation().0);
        tokio::select! {
            () = nodes.watch_lease() => {}
            changed = own.changed() => changed.unwrap(),
        }
        assert!(began.elapsed() < lease, "{:?} of {lease:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gives_up_its_calls_in_an_outage_and_has_a_new_lease_after_it() {
    let mut postgres = Postgres::start();
    let url = postgres.create("jobs");
    let member = Member { name: Some("a:1"), lease: Duration::from_secs(3), ..Member::COMMAND };
    let store = open_member(&url, &member).await.unwrap();
    store.accept_calls(true);
    let (nodes, mut own) = (store.nodes(), store.nodes().own());
    let former = *own.borrow_and_update();
    postgres.stop_immediately();
    timeout(PATIENCE, own.changed()).await.unwrap().unwrap();
    let now = *own.borrow();
    assert!(now.follows(former) && !nodes.ready().contains(&now));
    postgres.start_again();
    // On a busy machine it may lapse once more.
    until(|| nodes.ready().contains(&own.borrow())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_drains_leaves_the_seat_at_once_claims_nothing_more_and_ends_its_jobs_in_peace() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let first = open_as(&url, "a:1").await.unwrap();
    assert!(first.seat().is_free().await);
    first.insert(job(0), request(0)).await.unwrap();
    contract::claim(&first, 0, 100).await;
    let second = open_as(&url, "b:1").await.unwrap();
    assert!(!second.seat().is_free().await);
    first.drain().await;
    timeout(PATIENCE, second.seat().taken()).await.unwrap();
    second.insert(job(1), request(1)).await.unwrap();
    let claimed = job(2).apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(100)).unwrap();
    let late = [
        first.claim(job(1).id, Owner::ANY, None, at(100)).await.map(drop),
        first.insert(claimed, request(2)).await.map(drop),
    ];
    assert!(late.iter().all(|late| matches!(late, Err(StoreError::Unavailable { .. }))), "{late:?}");
    assert_eq!(second.find(job(2).id).await, Ok(None));
    contract::claim(&second, 1, 100).await;
    first.transition(job(0).id, success(1, 10), at(101)).await.unwrap();
    assert!(!first.lost().is_cancelled());
    first.close().await;
    assert_eq!(postgres.sql("jobs", "select name from ceoagent.node"), "b:1");
    let ended = second.find(job(0).id).await.unwrap().unwrap();
    assert!(ended.state.is_final(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seat_of_a_node_that_only_lost_the_connection_with_the_lock_is_not_free() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let holder = open(&url).await.unwrap();
    assert!(holder.seat().is_free().await);
    let database = Database::open(&SecretString::from(url.as_str()), &[]).await.unwrap();
    let other = database.connect().await.unwrap();
    // A lock that nobody has: as if the server had just ended that connection.
    let take = async || {
        let row = other
            .client
            .query_one(include_str!("try_seat.sql"), &[&7_i64, &true, &true, &database.node])
            .await
            .unwrap();
        row.get::<_, bool>(0)
    };
    assert!(!take().await);
    let mut n = 0;
    for _ in 0..3 {
        let ending = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objsubid = 1";
        postgres.sql("jobs", ending);
        n += 1;
        while holder.insert(job(n), request(n)).await.is_err() {
            n += 1;
        }
    }
    assert!(!holder.lost().is_cancelled() && holder.seat().is_free().await);
    // As a kill.
    drop(holder);
    let new_beat = "update seat set beat_at = clock_timestamp() + interval '1 hour'";
    let free = async {
        while !take().await {
            other.client.batch_execute(new_beat).await.unwrap();
        }
    };
    timeout(PATIENCE, free).await.expect("nobody waits for the beats of a dead process");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_write_a_new_format_once_all_can_read_it_and_an_old_program_can_come_back_until_then() {
    let postgres = Postgres::start();
    let url = postgres.create("jobs");
    let open = async |name, oldest, newest| {
        let formats = Formats { oldest, newest };
        open_member(&url, &Member { name: Some(name), formats, ..Member::COMMAND }).await
    };
    let format = || postgres.sql("jobs", "select number from ceoagent.format");
    let newest_row = || postgres.sql("jobs", "select get_byte(body, 0) from ceoagent.feed order by n desc limit 1");
    let old = open("a:1", 1, 1).await.unwrap();
    let heard = Heard::of(&old).await;
    let new = open("b:1", 1, 2).await.unwrap();
    new.insert(job(0), request(0)).await.unwrap();
    until(|| heard.pending() == [job(0)]).await;
    new.close().await;
    old.insert(job(1), request(1)).await.unwrap();
    assert_eq!((format(), newest_row()), ("1".to_owned(), "1".to_owned()), "the old program goes on alone");

    let new = open("b:1", 1, 2).await.unwrap();
    assert_eq!(new.find(job(1).id).await, Ok(Some(job(1))));
    old.close().await;
    until(|| format() == "2").await;
    let mut n = 2;
    while newest_row() != "2" {
        new.insert(job(n), request(n)).await.unwrap();
        n += 1;
    }
    let refused = open("a:1", 1, 1).await.err().unwrap().to_string();
    assert!(refused.contains("write format 2, and this program can use 1 to 1: start a newer ceoagent"), "{refused}");
    let refused = open("a:1", 3, 4).await.err().unwrap().to_string();
    assert!(refused.contains("start an older ceoagent"), "{refused}");
    let newer = open("c:1", 2, 3).await.unwrap();
    assert_eq!(newer.find(job(1).id).await, Ok(Some(job(1))));
    assert_eq!(format(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_makes_or_upgrades_the_schema_and_waits_for_nobody() {
    const NEXT: &str =
        "alter table ceoagent.job add column added integer; update ceoagent.schema_version set version = 2";
    let postgres = Postgres::start();
    let url = SecretString::from(postgres.create("jobs"));
    let steps = [Schema::OF_THIS_PROGRAM.steps[0], NEXT];
    let migrate = async |steps| Database::migrate(&url, Schema { steps, oldest: 1 }).await;
    assert_eq!(migrate(&steps[..1]).await.unwrap().to_string(), "created the schema ceoagent, version 1");
    assert_eq!(migrate(&steps[..1]).await.unwrap().to_string(), "nothing to do: the schema has version 1");
    let database = Database::open(&url, &[]).await.unwrap();
    let busy = database.connect().await.unwrap();
    for lock in ["select from job".to_owned(), format!("select pg_advisory_xact_lock({LOCK})")] {
        let begin = format!("set idle_in_transaction_session_timeout to 0; begin; {lock}");
        busy.client.batch_execute(&begin).await.unwrap();
        let refused = timeout(Duration::from_secs(60), migrate(&steps)).await.expect("it waits for 2 s").unwrap_err();
        assert!(matches!(refused, OpenError::SchemaInUse), "{refused}");
        busy.client.batch_execute("commit").await.unwrap();
    }
    assert_eq!(migrate(&steps).await.unwrap().to_string(), "upgraded the schema from version 1 to 2");
    assert_eq!(migrate(&steps[..1]).await.unwrap().to_string(), "nothing to do: the schema has version 2");
    Database::open(&url, &[]).await.expect("the old program can go on");
}
