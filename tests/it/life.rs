//! A job's life as its client sees it.

use std::time::Duration;

use ceoagent::{
    claude::simulator::{ErrorAnswer, Fault},
    clock::Clock,
};
use serde_json::{Value, json};

use crate::harness::{Setup, simulator};

#[tokio::test]
async fn a_question_is_accepted_at_once_and_becomes_a_memo() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let accepted = service.submit("Should we open a second plant?").await;
    assert_eq!(accepted.status, 202);
    assert_eq!(accepted.header("location"), format!("/api/v1/jobs/{}", accepted.id()));
    assert!(!accepted.header("retry-after").is_empty());
    let ended = service.ended(&accepted.id()).await.body;
    assert_eq!(ended["status"], "succeeded");
    assert!(ended["result"]["decision_question"].as_str().unwrap().contains("open a second plant"));
    assert_eq!(ended["result"]["weighted_totals"][0]["rank"], 1);
    assert_eq!(claude.counters().calls, 1);
}

#[tokio::test]
async fn a_client_that_waits_gets_the_memo_in_the_same_answer() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let answer = service.post("/api/v1/analyze", &json!({ "query": "要不要进入新市场？", "wait": true })).await;
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert!(answer.body["result"]["summary"].as_str().unwrap().starts_with("模拟回答"));
}

#[tokio::test]
async fn a_wait_that_ends_before_the_job_answers_202_with_the_job() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).start();
    let answer = service.post("/api/v1/analyze", &json!({ "query": "Wait?", "wait": 1 })).await;
    assert_eq!(answer.status, 202, "{answer:#?}");
    assert_eq!(answer.body["status"], "running");
    claude.release();
    assert_eq!(service.ended(&answer.id()).await.body["status"], "succeeded");
}

/// Why a job waits.
fn waiting_for(answer: &Value) -> (Option<u64>, &str) {
    (answer["queue"]["position"].as_u64(), answer["queue"]["waiting_for"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_pending_job_tells_why_it_waits_its_place_and_when_its_answer_may_come() {
    let claude = simulator().await;
    claude.script([Fault::Hold]);
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let running = service.submit("First?").await;
    claude.wait_for_calls(1).await;
    let second = service.submit("Second?").await;
    assert_eq!(waiting_for(&second.body), (Some(1), "worker"), "{second:#?}");
    let third = service.submit("Third?").await;
    let urgent = service.post("/api/v1/analyze", &json!({ "query": "Urgent?", "priority": "high" })).await;
    assert_eq!(waiting_for(&urgent.body), (Some(1), "worker"));
    let third = service.get(&format!("/api/v1/jobs/{}", third.id())).await.body;
    assert_eq!(waiting_for(&third), (Some(3), "worker"));
    let second = service.get(&format!("/api/v1/jobs/{}", second.id())).await.body;
    assert!(third["queue"]["eta_seconds"].as_u64() > second["queue"]["eta_seconds"].as_u64());
    let run_at = Clock::system().now().plus(Duration::from_hours(1)).to_string();
    let later = service.post("/api/v1/analyze", &json!({ "query": "Later?", "run_at": run_at })).await;
    assert_eq!(waiting_for(&later.body), (None, "run_at"));
    let running = service.get(&format!("/api/v1/jobs/{}", running.id())).await.body;
    assert!(running.get("queue").is_none(), "what runs does not wait: {running:#}");
    let list = service.admin_get("/api/v1/admin/jobs?status=queued").await.body;
    let places: Vec<_> = list["jobs"].as_array().unwrap().iter().map(|job| waiting_for(job).0.unwrap()).collect();
    assert_eq!(places, [1, 3, 2], "newest first: urgent, third, second");
    claude.release();
}

#[tokio::test]
async fn a_job_that_the_rate_or_the_gate_holds_back_says_so() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("RATE_LIMITS", "1 request").start();
    service.ended(&service.submit("First?").await.id()).await;
    let second = service.submit("Second?").await;
    // The worker that saw the job asks for its permit in a moment.
    loop {
        let job = service.get(&format!("/api/v1/jobs/{}", second.id())).await.body;
        if waiting_for(&job) == (Some(1), "rate_limit") {
            break;
        }
        assert_eq!(waiting_for(&job), (Some(1), "worker"));
    }

    claude.script([ErrorAnswer::status(429).header("retry-after", "600").into()]);
    let service = Setup::new(&claude.base_url()).start();
    let job = service.submit("Third?").await;
    loop {
        let job = service.get(&format!("/api/v1/jobs/{}", job.id())).await.body;
        // The job that met the limit lets others go first until the gate opens, so it has no position.
        if job["status"] == "scheduled" && waiting_for(&job) == (None, "gate") {
            assert!(job["queue"]["eta_seconds"].as_u64() >= Some(590), "{job:#}");
            break;
        }
    }
}

#[tokio::test]
async fn the_wait_for_a_run_at_counts_in_no_metric_of_time() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let run_at = Clock::system().now().plus(Duration::from_secs(3)).to_string();
    let later = service.post("/api/v1/analyze", &json!({ "query": "Should we wait?", "run_at": run_at })).await;
    assert_eq!(service.ended(&later.id()).await.body["status"], "succeeded");
    for name in ["claim", "finish"] {
        let sum = service.metric(&format!("ceoagent_job_time_to_{name}_seconds_sum")).await;
        let seconds: f64 = sum.parse().unwrap();
        assert!(seconds < 2.0, "{name}: {seconds} s from the moment it was due");
    }
}
