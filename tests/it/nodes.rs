//! Several nodes on one PostgreSQL: one is active, the others stand by. What holds when the active one is killed or paused,
//! and when the database itself crashes.

use std::time::Instant;

use rand::RngExt;
use serde_json::json;

use crate::{
    database::Postgres,
    harness::{PATIENCE, Service, Setup, client, simulator},
    load::{Ledger, Load},
};

const KILLS: usize = 5;

/// A node in a folder of its own.
fn node(base_url: &str, database_url: &str) -> Setup {
    Setup::new(base_url)
        .with("DATABASE_URL", database_url)
        .with("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")
        .with("WORKERS", "16")
        .with("MAX_RETRIES", "20")
}

async fn until_ready(service: &Service) {
    let deadline = Instant::now() + PATIENCE;
    while service.get("/health/ready").await.status != 200 {
        assert!(Instant::now() < deadline, "it never became ready");
        tokio::task::yield_now().await;
    }
}

/// The metric that says whether a node is the dispatcher.
async fn dispatchers(service: &Service) -> u32 {
    let metrics = service.get("/metrics").await.body;
    let line = metrics.as_str().unwrap().lines().find_map(|line| line.strip_prefix("ceoagent_dispatcher "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_node_takes_over_after_a_kill_under_load_and_no_accepted_job_is_lost() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let start = || node(&claude.base_url(), &url).start();
    let mut ledger = Ledger::default();
    let mut active = start();
    for life in 0..KILLS {
        let standby = start();
        assert_eq!(standby.get("/health").await.body["status"], "ok");
        let unready = standby.get("/health/ready").await;
        assert_eq!(unready.assert_problem(503, "not_ready").body["errors"][0]["field"], "standby");
        let refused = standby.submit("Which node answers?").await;
        assert_eq!(refused.assert_problem(503, "standby").header("retry-after"), "1");
        assert_eq!((dispatchers(&active).await, dispatchers(&standby).await), (1, 0));

        let mut load = Load::start(&active, life);
        load.accepted(rand::rng().random_range(1..60), &mut ledger).await;
        active.kill();
        let killed = Instant::now();
        standby.until_said("ceoagent is ready");
        println!("taken over after {:?}", killed.elapsed());
        load.end(&mut ledger).await;
        active = standby;
    }
    ledger.assert_ended_once(&active, KILLS).await;
    let (status, log) = active.terminate();
    assert!(status.success(), "{log}");
    ledger.assert_kept(&start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_node_that_wakes_up_after_another_took_over_writes_nothing_and_ends() {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let paused = node(&claude.base_url(), &url).start();
    let standby = node(&claude.base_url(), &url).start();
    let mut ledger = Ledger::default();
    let mut load = Load::start(&paused, 0);
    load.accepted(10, &mut ledger).await;
    paused.signal("STOP");
    standby.until_said("ceoagent is ready");
    let late = tokio::spawn({
        let url = format!("{}/api/v1/analyze", paused.base());
        async move { client().post(url).json(&json!({ "query": "Too late?" })).send().await }
    });
    let other = standby.submit("In time?").await;
    assert_eq!(other.status, 202, "{other:#?}");
    paused.signal("CONT");
    let (status, log) = paused.wait();
    assert!(!status.success() && log.contains("another node has become the active one"), "{log}");
    if let Ok(answer) = late.await.unwrap() {
        assert_ne!(answer.status(), 202);
    }
    load.end(&mut ledger).await;
    let found = standby.admin_get("/api/v1/admin/jobs?text=Too+late").await;
    assert_eq!(found.body["jobs"].as_array().map(Vec::len), Some(0), "{:#}", found.body);
    ledger.assert_ended_once(&standby, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_database_under_load_loses_no_accepted_job_and_jobs_go_on() {
    let (mut postgres, claude) = (Postgres::start(), simulator().await);
    let service = node(&claude.base_url(), &postgres.create("jobs")).start();
    let mut ledger = Ledger::default();
    for life in 0..2 {
        let mut load = Load::start(&service, life);
        load.accepted(40, &mut ledger).await;
        postgres.stop_immediately();
        load.end(&mut ledger).await;
        let refused = service.submit("Is anybody there?").await;
        refused.assert_problem(503, "storage_unavailable");
        postgres.start_again();
        until_ready(&service).await;
    }
    ledger.assert_ended_once(&service, 2).await;
}

#[test]
fn what_a_node_lacks_for_a_database_stops_its_start_in_words() {
    let postgres = Postgres::start_with(&["fsync=off"]);
    let setup = node("http://127.0.0.1:9", &postgres.create("jobs"));
    let (status, said) = setup.run(&["serve"]);
    assert!(!status.success() && said.contains("fsync=off, so a power cut loses acknowledged jobs"), "{said}");
    for name in ["ADMIN_TOKEN", "WEBHOOK_SECRET"] {
        let (status, said) = node("http://127.0.0.1:9", &postgres.url("jobs")).without(name).run(&["serve"]);
        assert!(!status.success() && said.contains(&format!("DATABASE_URL needs {name}")), "{said}");
    }
}
