//! Memos at Claude's real pace, by the shipped binary with default settings: `cargo bench --bench pace`. Takes about four
//! minutes and exits with 1 if a target is missed.
//!
//! - brief: the ten sample questions, one after the other, by a client that waits. Each memo must come with `200` within
//!   29 s, 95 % of them within 20 s.
//! - full: the same questions at once by a client that does not wait, and two that take the longest: 45 s of thinking and
//!   3,700 tokens. Each memo must come by one attempt.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "a benchmark for people"
)]

mod measure;

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use ceoagent::claude::simulator::{Latency, Simulator, SimulatorConfig, pace::Timing};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::measure::{Connection, Service, get, post_json};

/// Longest time to a brief memo, and that of 95 % of them.
const BRIEF: [Duration; 2] = [Duration::from_secs(29), Duration::from_secs(20)];

/// The slowest answers: at least so much thinking and writing.
const SLOWEST: [Duration; 2] = [Duration::from_millis(44_500), Duration::from_millis(40_500)];

/// The samples that are not wrong on purpose, by name.
fn samples() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/analysis/samples");
    let mut samples: Vec<(String, Value)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let sample: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), sample["request"].clone())
        })
        .filter(|(name, request)| request.is_object() && !name.starts_with('v'))
        .collect();
    samples.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(samples.len(), 10);
    samples
}

/// Questions whose full memo takes Claude the longest.
fn slowest() -> impl Iterator<Item = (String, Value)> {
    let question = |n: u32| format!("Should we open office {n}?");
    let is_slow = move |n: &u32| {
        let timing = Timing::of(&question(*n), false, Some("high"), None);
        timing.thinking >= SLOWEST[0] && timing.writing >= SLOWEST[1]
    };
    (0..).filter(is_slow).take(2).map(move |n| (format!("slowest {n}"), json!({ "query": question(n) })))
}

/// A row for each question, and whether all targets are met.
async fn brief(address: &str) -> bool {
    println!("| brief, wait: true | status | seconds | attempts |\n|---|---|---|---|");
    let mut connection = Connection::open(address).await.unwrap();
    let (mut times, mut is_good) = (Vec::new(), true);
    for (name, mut request) in samples() {
        request["wait"] = true.into();
        let asked = Instant::now();
        let (status, body) = connection.ask(&post_json(&request)).await;
        let (took, job) = (asked.elapsed(), serde_json::from_slice::<Value>(&body).unwrap());
        println!("| {name} | {status} | {:.1} | {} |", took.as_secs_f64(), attempts(&job));
        is_good &= status == 200 && took <= BRIEF[0];
        times.push(took);
    }
    times.sort_unstable();
    let p95 = times[times.len() * 95 / 100];
    println!("p50 {:.1} s, p95 {:.1} s", times[times.len() / 2].as_secs_f64(), p95.as_secs_f64());
    is_good && p95 <= BRIEF[1]
}

/// As [`brief`], without a wait.
async fn full(address: &str) -> bool {
    println!("| full | status | seconds | attempts |\n|---|---|---|---|");
    let mut clients = JoinSet::new();
    for (name, request) in samples().into_iter().chain(slowest()) {
        let address = address.to_owned();
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let asked = Instant::now();
            let (_, body) = connection.ask(&post_json(&request)).await;
            let mut job: Value = serde_json::from_slice(&body).unwrap();
            let path = format!("/api/v1/jobs/{}?wait=29", job["id"].as_str().unwrap());
            while matches!(job["status"].as_str(), Some("queued" | "scheduled" | "running")) {
                job = serde_json::from_slice(&connection.ask(&get(&path)).await.1).unwrap();
            }
            println!("| {name} | {} | {:.1} | {} |", job["status"], asked.elapsed().as_secs_f64(), attempts(&job));
            job["status"] == "succeeded" && attempts(&job) == 1
        });
    }
    clients.join_all().await.into_iter().all(|is_good| is_good)
}

fn attempts(job: &Value) -> usize {
    job["attempts"].as_array().map_or(0, Vec::len)
}

#[tokio::main]
async fn main() -> ExitCode {
    let config = SimulatorConfig { latency: Latency::Claude, ..SimulatorConfig::default() };
    let claude = Simulator::start(config).await.unwrap();
    let service = Service::start(&claude.base_url(), &[]).await;
    let (brief, full) = (brief(&service.address).await, full(&service.address).await);
    if brief && full {
        println!("all targets are met");
        return ExitCode::SUCCESS;
    }
    println!("a target is missed");
    ExitCode::FAILURE
}
