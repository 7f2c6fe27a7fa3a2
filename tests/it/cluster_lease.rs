//! A node that dies with calls and does not come back. The other nodes are in this process, where their lease can be short.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use ceoagent::{
    app::{App, Tuning},
    claude::simulator::{Fault, Simulator},
    clock::Clock,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    database::Postgres,
    harness::{PATIENCE, Service, settings, simulator},
    nodes::node,
};

const LEASE: Duration = Duration::from_secs(5);

const WEBHOOK_SECRET: &str = "--webhook-secret=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

/// The most calls at once.
const WORKERS: usize = 6;

const JOBS: usize = 10;

/// A node with a short lease.
async fn survivor(folder: &Path, claude: &Simulator, url: &str, more: &str) -> App {
    let (database, workers) = (format!("--database-url={url}"), format!("--workers={WORKERS}"));
    let flags = [&database, WEBHOOK_SECRET, &workers, more];
    let settings = settings(&claude.base_url(), folder, &flags);
    let tuning = Tuning { lease: LEASE, ..Tuning::default() };
    App::start_tuned(&settings, tuning, Clock::system()).await.unwrap()
}

/// The calls that a node makes now.
async fn running(node: &Service) -> usize {
    let metrics = node.get("/metrics").await.body;
    let line = metrics.as_str().unwrap().lines().find_map(|line| line.strip_prefix("ceoagent_running_attempts "));
    line.unwrap().parse().unwrap()
}

async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn outcomes(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect()
}

/// Kills one of three nodes with calls that Claude does not answer. Gives the jobs whose calls it made, and the others, once
/// all have ended, and how many calls Claude received.
async fn kill_for_good(on_unknown_outcome: &str) -> (Vec<Value>, Vec<Value>, usize) {
    let (postgres, claude) = (Postgres::start(), simulator().await);
    let url = postgres.create("jobs");
    let rule = format!("--on-unknown-outcome={on_unknown_outcome}");
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = survivor(folders[0].path(), &claude, &url, &rule).await;
    let second = survivor(folders[1].path(), &claude, &url, &rule).await;
    let survivors = [Service::in_process(&first), Service::in_process(&second)];
    let victim = node(&claude.base_url(), &url).start();
    // Calls go to a node once its beats are known.
    let has_called = async || {
        let metrics = victim.get("/metrics").await.body;
        !metrics.as_str().unwrap().contains("ceoagent_attempt_duration_seconds_count 0\n")
    };
    let deadline = Instant::now() + PATIENCE;
    while !has_called().await {
        assert!(Instant::now() < deadline, "the node is given no call");
        let request = |n| json!({ "query": format!("Is it alive {n}?"), "wait": true });
        let requests: Vec<Value> = (0..WORKERS).map(request).collect();
        let answers = join_all(requests.iter().map(|request| survivors[0].post("/api/v1/analyze", request))).await;
        answers.iter().for_each(|answer| assert_eq!(answer.status, 200, "{answer:#?}"));
    }
    let before = claude.counters().calls;
    claude.always(|_| true, Fault::Hold);
    let mut ids = Vec::new();
    for n in 0..JOBS {
        ids.push(survivors[n % 2].submit(&format!("Is it dead {n}?")).await.id());
    }
    until("the calls are under way", async || claude.counters().in_flight == WORKERS).await;
    let lost = running(&victim).await;
    assert!(lost > 0 && lost < WORKERS, "{lost} of {WORKERS} calls");
    victim.kill();
    let killed = Instant::now();
    claude.wait_for_aborted(lost).await;
    let jobs = async || {
        let mut jobs = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            jobs.push(survivors[n % 2].get(&format!("/api/v1/jobs/{id}")).await.body);
        }
        jobs
    };
    let is_unknown = |job: &Value| outcomes(job).contains(&"outcome_unknown");
    until("the attempts of the dead node end", async || {
        jobs().await.iter().filter(|job| is_unknown(job)).count() == lost
    })
    .await;
    // Its last beat was up to a second before its end.
    let lasted = killed.elapsed();
    assert!(lasted > LEASE - Duration::from_millis(1_500), "{lasted:?}");
    println!("{on_unknown_outcome}: {lost} of {WORKERS} calls lost, ended after {lasted:?}");
    claude.relent();
    claude.release();
    for id in &ids {
        survivors[0].ended(id).await;
    }
    let (lost, others) = jobs().await.into_iter().partition(is_unknown);
    let calls = claude.counters().calls - before;
    first.stop().await;
    second.stop().await;
    (lost, others, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attempts_of_a_node_that_stays_dead_end_once_on_the_others_after_a_lease_by_the_rule_for_unknown_outcomes()
{
    let ((retried, others, calls), (failed, _, calls_without_retry)) =
        tokio::join!(kill_for_good("retry"), kill_for_good("fail"));
    for job in &retried {
        assert_eq!(
            (outcomes(job), &job["status"]),
            (vec!["outcome_unknown", "succeeded"], &json!("succeeded")),
            "{job:#}"
        );
        assert_eq!(job["attempts"][0]["may_have_been_billed"], true);
    }
    for job in &others {
        assert_eq!((outcomes(job), &job["status"]), (vec!["succeeded"], &json!("succeeded")), "{job:#}");
    }
    assert_eq!(calls, 2 * retried.len() + others.len());
    for job in &failed {
        assert_eq!((outcomes(job), &job["status"]), (vec!["outcome_unknown"], &json!("failed")), "{job:#}");
    }
    assert!(calls_without_retry > failed.len());
}
