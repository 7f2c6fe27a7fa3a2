//! SIGKILL of the real binary under load, and while it starts and recovers from the kill before: every job that was
//! answered `202` is there afterwards and ends exactly once.

use std::time::{Duration, Instant};

use ceoagent::claude::simulator::Fault;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::{
    harness::{Setup, simulator},
    load::{Ledger, Load},
};

/// More for the long version: `CEOAGENT_TEST_KILLS=200 cargo test --test it crash`.
const KILLS: usize = 20;

/// Of three kills, so many come before the service is ready.
const EARLY: u32 = 1;

/// Starts the service and kills it after `after`, wherever it has got to. Gives its log.
async fn start_and_die(setup: &Setup, after: Duration) -> String {
    let mut child = setup.command().arg("serve").spawn().unwrap();
    // Not to wait for anything: the length is the random moment of the kill.
    tokio::time::sleep(after).await;
    child.kill().unwrap();
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_no_accepted_job_and_ends_each_once() {
    let kills = std::env::var("CEOAGENT_TEST_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "16").with("MAX_RETRIES", "20");
    let mut ledger = Ledger::default();
    let mut time_to_ready = Duration::ZERO;
    let (mut before_ready, mut in_recovery) = (0, 0);
    for life in 0..kills {
        if time_to_ready > Duration::ZERO && random.random_ratio(EARLY, 3) {
            let said = start_and_die(&setup, time_to_ready.mul_f64(random.random_range(0.0..1.2))).await;
            let ready = said.contains("ceoagent is ready");
            before_ready += usize::from(!ready);
            in_recovery += usize::from(!ready && said.contains("the process ended"));
            continue;
        }
        let started = Instant::now();
        let service = setup.start();
        time_to_ready = started.elapsed();
        let mut load = Load::start(&service, life);
        load.accepted(random.random_range(1..120), &mut ledger).await;
        service.kill();
        load.end(&mut ledger).await;
    }
    let jobs = ledger.accepted.len();
    println!("{kills} kills, {before_ready} before it was ready, {in_recovery} in recovery; {jobs} jobs accepted");

    let service = setup.start();
    ledger.assert_ended_once(&service, kills).await;
    // An end is an end: another start changes nothing.
    service.kill();
    ledger.assert_kept(&setup.start()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_deadline_passed_while_no_process_ran_is_not_paid_for() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1").with("ON_UNKNOWN_OUTCOME", "fail");
    let service = setup.start();
    service.submit("Which one first?").await;
    claude.wait_for_calls(1).await;
    let mut late = Vec::new();
    for n in 0..100 {
        let question = json!({ "query": format!("Should we make plan {n}?"), "deadline_seconds": 1 });
        late.push(service.post("/api/v1/analyze", &question).await.id());
    }
    let accepted = Instant::now();
    service.kill();
    // The deadline is the wall clock's: nothing else can be waited for.
    tokio::time::sleep(Duration::from_millis(1_100).saturating_sub(accepted.elapsed())).await;
    let service = setup.start();
    for id in late {
        let job = service.ended(&id).await.body;
        assert_eq!(job["error"]["code"], "deadline_exceeded", "{job:#}");
    }
    assert_eq!(claude.calls().len(), 1, "no late job was sent to Claude");
}
