//! Upstreams whose answers never end, as fast as they can send: they cost little CPU, and nothing that was paid for.

use std::{
    io::Write,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    cases::{MEMO, STREAM, event, events, request},
    harness::{Service, Setup},
};

/// Answers every call with `start` and then with `again` until the connection is closed. Counts the bytes of these.
fn endless(start: String, again: &str) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (sent, again) = (Arc::new(AtomicU64::new(0)), again.repeat(1_000));
    let counted = Arc::clone(&sent);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, counted) = (connection.unwrap(), Arc::clone(&counted));
            let (start, again) = (start.clone(), again.clone());
            thread::spawn(move || {
                if request(&mut connection).is_some_and(|head| head.starts_with("POST ")) {
                    let _ = connection.write_all(format!("{STREAM}{start}").as_bytes());
                    while connection.write_all(again.as_bytes()).is_ok() {
                        counted.fetch_add(again.len() as u64, SeqCst);
                    }
                }
            });
        }
    });
    (base, sent)
}

/// CPU time of the service so far.
fn cpu_time(service: &Service) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // User and system time, in hundredths of a second.
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// The job of one question to that upstream, and the service. Asserts that the call of at most 10 s took
/// less than 2 s of CPU.
async fn ask(name: &str, start: String, again: &str) -> (Value, Service) {
    let (base, sent) = endless(start, again);
    let service = Setup::new(&base).with("MAX_RETRIES", "0").with("REQUEST_TIMEOUT", "10").start();
    let (before, began) = (cpu_time(&service), Instant::now());
    let id = service.submit("Shall we open a second counter?").await.id();
    let job = service.ended(&id).await.body;
    let (cpu, took) = (cpu_time(&service) - before, began.elapsed());
    println!("{name}: {cpu:?} of CPU in {took:?}, {} KB sent", sent.load(SeqCst) / 1_000);
    assert!(cpu < Duration::from_secs(2), "{name}: {cpu:?} of CPU in {took:?}");
    (job, service)
}

/// The events of an answer before its stop reason.
fn unstopped(text: &str) -> String {
    events(text)[..3].concat()
}

fn ping() -> String {
    event("ping", &json!({ "type": "ping" }))
}

#[tokio::test]
async fn endless_pings_comments_and_blank_lines_cost_little_cpu_and_the_answer_before_them_is_stored() {
    let cases =
        [("pings", ping()), ("comments", ":\n".into()), ("blank lines", "\n".into()), ("ids", "id: 7\n\n".into())];
    // Each takes 10 seconds.
    join_all(cases.map(async |(name, again): (_, String)| {
        let (job, service) = ask(name, unstopped(MEMO), &again).await;
        let code = job["error"]["code"].as_str().unwrap();
        assert!(["time_limit", "timeout", "malformed_response"].contains(&code), "{name}: {job:#}");
        let reparse = format!("/api/v1/admin/jobs/{}/reparse", job["id"].as_str().unwrap());
        let read = service.admin_post(&reparse, &json!({})).await;
        assert_eq!((read.status, &read.body["status"]), (200, &json!("succeeded")), "{name}: {:#}", read.body);
    }))
    .await;
}

#[tokio::test]
async fn deltas_of_one_character_without_end_cost_little_cpu_and_are_stored_as_far_as_they_came() {
    let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}});
    let (job, service) = ask("deltas", unstopped("{"), &event("content_block_delta", &delta)).await;
    assert_eq!(job["status"], "failed", "{job:#}");
    let seen = service.admin_get(&format!("/api/v1/jobs/{}", job["id"].as_str().unwrap())).await.body;
    let raw = seen["attempts"][0]["raw_answer"].as_str().unwrap();
    assert!(raw.starts_with("{xxx") && raw.len() > 20_000, "{} bytes", raw.len());
}

#[tokio::test]
async fn pings_after_the_stop_reason_delay_the_memo_by_seconds_only() {
    let stopped = events(MEMO)[..4].concat();
    let (job, _service) = ask("pings after the stop reason", stopped, &ping()).await;
    assert_eq!(job["status"], "succeeded", "{job:#}");
}
