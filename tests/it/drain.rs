//! The stop, clause by clause: what a first signal lets finish and what it gives back, and that a second one ends it.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpStream,
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use ceoagent::claude::simulator::{Fault, Simulator};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Service, Setup, client, send, simulator};

/// The outcome of each attempt that has ended.
fn outcomes(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect()
}

/// Waits until the service has taken note of a signal.
async fn not_ready(service: &Service) {
    while service.get("/health/ready").await.status == 200 {}
}

/// A service with a call under way that is not answered, and a job behind it.
async fn busy(setup: &Setup, claude: &Simulator) -> (Service, String, String) {
    claude.script([Fault::Hold]);
    let service = setup.start();
    let running = service.submit("Running?").await.id();
    claude.wait_for_calls(1).await;
    let queued = service.submit("Queued?").await.id();
    (service, running, queued)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_when_the_stop_begins_is_not_claimed_even_if_a_worker_becomes_free() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1");
    let (service, running, queued) = busy(&setup, &claude).await;
    service.signal("TERM");
    not_ready(&service).await;
    claude.release();
    let (status, log) = service.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(claude.counters().calls, 1);

    let service = setup.start();
    for id in [running, queued] {
        assert_eq!(outcomes(&service.ended(&id).await.body), ["succeeded"]);
    }
    assert_eq!(claude.counters().calls, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_not_answered_gets_the_grace_and_no_more() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "1").with("SHUTDOWN_GRACE", "1");
    let (service, running, queued) = busy(&setup, &claude).await;
    // A client that never sends the rest must not hold the stop up.
    let mut stuck = TcpStream::connect(service.base().trim_start_matches("http://")).unwrap();
    stuck.write_all(b"POST /api/v1/analyze HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let signalled = Instant::now();
    let (status, log) = service.terminate();
    let took = signalled.elapsed();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("SHUTDOWN_GRACE is over"), "{log}");
    // The grace, two seconds for connections, and as long again for a busy machine.
    assert!((Duration::from_secs(1)..Duration::from_secs(6)).contains(&took), "{took:?}");

    let service = setup.start();
    assert_eq!(outcomes(&service.ended(&running).await.body), ["outcome_unknown", "succeeded"]);
    assert_eq!(outcomes(&service.ended(&queued).await.body), ["succeeded"]);
}

/// Stops a busy service by a first and a second signal. Gives how it ended and the ids of its jobs.
async fn stopped_twice(setup: &Setup, claude: &Simulator, second: &str) -> (ExitStatus, [String; 2]) {
    let (service, running, queued) = busy(setup, claude).await;
    service.signal("TERM");
    not_ready(&service).await;
    let signalled = Instant::now();
    service.signal(second);
    let (status, log) = service.wait();
    assert!(log.contains("a second signal"), "{log}");
    assert!(signalled.elapsed() < Duration::from_secs(30), "{:?} of ten minutes of grace", signalled.elapsed());
    (status, [running, queued])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_stop_at_once_with_its_own_exit_code_and_loses_nothing() {
    for (second, code) in [("TERM", 143), ("INT", 130)] {
        let claude = simulator().await;
        let setup = Setup::new(&claude.base_url()).with("WORKERS", "1").with("SHUTDOWN_GRACE", "600");
        let (status, [running, queued]) = stopped_twice(&setup, &claude, second).await;
        assert_eq!(status.code(), Some(code));
        let service = setup.start();
        assert_eq!(outcomes(&service.ended(&running).await.body), ["outcome_unknown", "succeeded"]);
        assert_eq!(outcomes(&service.ended(&queued).await.body), ["succeeded"]);
    }
}

/// The signals that a process handles, as a set of bits, from signal 1 on.
fn handled(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(bits.trim(), 16).unwrap()
}

#[test]
fn signals_are_handled_from_the_first_line_of_main() {
    let setup = Setup::new("http://127.0.0.1:9");
    // The settings file is the first that is read. Until somebody writes to it, the process waits there.
    let settings = setup.folder().join(".env");
    assert!(Command::new("mkfifo").arg(&settings).status().unwrap().success());
    let child = setup.command().arg("serve").spawn().unwrap();
    let (hangup, terminate) = (1, 1 << 14);
    while handled(child.id()) & (hangup | terminate) != hangup | terminate {
        std::thread::yield_now();
    }
    for signal in ["HUP", "TERM"] {
        assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
    }
    std::fs::write(&settings, "WORKERS=1\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Workers that are kept busy.
const WORKERS: usize = 64;

/// Calls that are made before an answer has told the account's limits.
const FIRST_CALLS: usize = 8;

const CLIENTS: usize = 16;

/// Jobs of each client: together so many that no stop meets an empty queue.
const JOBS: usize = 80;

/// Seven of eight stops meet a worker between its claim and its call; so many in a row that meet none are a fault.
const STOPS: usize = 6;

const CALLS_BETWEEN_STOPS: usize = 100;

/// Asks so many questions. Gives the ids, with the question of each.
async fn post_all(base: String, name: usize) -> Vec<(String, String)> {
    let client = client();
    let mut accepted = Vec::new();
    for n in 0..JOBS {
        let query = format!("Should team {name} proceed with plan {n}?");
        let request = client.post(format!("{base}/api/v1/analyze")).json(&json!({ "query": query }));
        accepted.push((send(request).await.id(), query));
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_finishes_or_gives_back_every_attempt_and_keeps_every_job() {
    let claude = simulator().await;
    claude.script(vec![Fault::Hold; FIRST_CALLS]);
    let setup = Setup::new(&claude.base_url()).with("WORKERS", &WORKERS.to_string());
    let service = setup.start();
    let mut clients = JoinSet::new();
    for name in 0..CLIENTS {
        clients.spawn(post_all(service.base().to_owned(), name));
    }
    let accepted: BTreeMap<String, String> = clients.join_all().await.into_iter().flatten().collect();
    claude.wait_for_calls(FIRST_CALLS).await;
    claude.release();
    let mut running = Some(service);
    for stop in 1..=STOPS {
        let service = running.take().unwrap_or_else(|| setup.start());
        claude.wait_for_calls(WORKERS + stop * CALLS_BETWEEN_STOPS).await;
        let (status, log) = service.terminate();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("SHUTDOWN_GRACE is over"), "{log}");
    }
    assert!(claude.counters().calls < accepted.len(), "the stops came too late to tell anything");

    let service = setup.start();
    let mut released = 0;
    for (id, query) in &accepted {
        let job = service.ended(id).await.body;
        assert_eq!(job["query"], **query);
        let outcomes = outcomes(&job);
        let (last, earlier) = outcomes.split_last().unwrap();
        assert_eq!(*last, "succeeded", "{job:#}");
        assert!(earlier.iter().all(|outcome| *outcome == "released"), "a call was left in mid-air: {job:#}");
        for attempt in &job["attempts"].as_array().unwrap()[..earlier.len()] {
            assert_eq!(attempt["error"]["code"], "shutdown", "{attempt}");
        }
        released += earlier.len();
    }
    // How many, chance decides: a worker is between its claim and its call for moments only.
    println!("{released} attempts were given back");
    assert_eq!(claude.counters().calls, accepted.len(), "what was given back had not been sent");
}
