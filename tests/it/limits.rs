//! The account's limits: kept to by setting, learnt from answers, changed while the service runs.

use std::time::Duration;

use ceoagent::claude::simulator::{AccountLimits, ErrorAnswer, Simulator, SimulatorConfig};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ADMIN_TOKEN, Answer, Service, Setup, send, simulator};

/// A Claude that allows so many requests a minute, a second's worth at once.
async fn strict(requests: u32) -> Simulator {
    let (input_tokens, output_tokens) = (1_000_000_000, 1_000_000_000);
    let limits = AccountLimits { requests, input_tokens, output_tokens, burst: Duration::from_secs(1) };
    Simulator::start(SimulatorConfig { limits: Some(limits), ..SimulatorConfig::default() }).await.unwrap()
}

/// Has `n` questions answered, and gives the calls that took.
async fn calls_for(n: usize, service: &Service, claude: &Simulator) -> usize {
    let before = claude.counters().calls;
    let mut ids = Vec::new();
    for number in 0..n {
        ids.push(service.submit(&format!("Plan {number}?")).await.id());
    }
    for id in ids {
        assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    }
    claude.counters().calls - before
}

async fn limits(service: &Service) -> Value {
    service.admin_get("/api/v1/admin/limits").await.body
}

async fn change(service: &Service, body: &Value) -> Answer {
    send(service.request(Method::PATCH, "/api/v1/admin/limits").bearer_auth(ADMIN_TOKEN).json(body)).await
}

#[tokio::test]
async fn a_limit_that_is_set_is_never_met() {
    let claude = strict(1_200).await;
    let service = Setup::new(&claude.base_url()).with("RATE_LIMITS", "1200 requests").start();
    assert_eq!(calls_for(60, &service, &claude).await, 60, "none was turned away");
}

#[tokio::test]
async fn a_limit_that_is_only_told_in_answers_is_kept_to_from_then_on() {
    let claude = strict(1_200).await;
    let service = Setup::new(&claude.base_url()).start();
    calls_for(1, &service, &claude).await;
    let limits = limits(&service).await;
    assert_eq!(limits["in_force"]["requests_per_minute"], 1_200, "{limits:#}");
    assert_eq!(limits["settings"]["requests_per_minute"], 1_000_000);
    assert_eq!(calls_for(60, &service, &claude).await, 60, "none was turned away");
}

#[tokio::test]
async fn limits_are_changed_while_the_service_runs() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let changed = change(&service, &json!({ "requests_per_minute": 1 })).await;
    assert_eq!((changed.status, &changed.body["settings"]["requests_per_minute"]), (200, &json!(1)), "{changed:#?}");
    assert_eq!(changed.body["settings"]["input_tokens_per_minute"], 1_000_000_000, "the others stay");
    let job = service.submit("Held back?").await;
    loop {
        let job = service.get(&format!("/api/v1/jobs/{}", job.id())).await.body;
        if job["queue"]["waiting_for"] == "rate_limit" {
            break;
        }
    }
    assert_eq!(change(&service, &json!({ "requests_per_minute": 60_000 })).await.status, 200);
    assert_eq!(service.ended(&job.id()).await.body["status"], "succeeded");
}

#[tokio::test]
async fn limits_that_are_none_are_told_and_change_nothing() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let before = limits(&service).await;
    for (body, field) in [
        (json!({ "requests_per_minute": 0 }), "requests_per_minute"),
        (json!({ "requests_per_minute": 1_000_001 }), "requests_per_minute"),
        (json!({ "input_tokens_per_minute": 999 }), "input_tokens_per_minute"),
        (json!({ "requests_per_minute": "many" }), "requests_per_minute"),
        (json!({ "request": 1 }), "request"),
    ] {
        let answer = change(&service, &body).await;
        answer.assert_problem(422, "validation_failed");
        assert_eq!(answer.body["errors"][0]["field"], field);
    }
    let anonymous =
        send(service.request(Method::PATCH, "/api/v1/admin/limits").json(&json!({ "requests_per_minute": 1 }))).await;
    anonymous.assert_problem(401, "unauthorized");
    assert_eq!(limits(&service).await, before);
}

#[tokio::test]
async fn an_overloaded_claude_is_asked_for_less_at_once_and_the_job_ends_all_the_same() {
    let claude = simulator().await;
    claude.script([ErrorAnswer::status(529).into(), ErrorAnswer::status(529).into()]);
    let service = Setup::new(&claude.base_url()).with("WORKERS", "8").start();
    // Two questions: what only one meets says nothing of the others.
    let jobs = [service.submit("Busy?").await, service.submit("Still busy?").await];
    claude.wait_for_calls(2).await;
    loop {
        let eased = limits(&service).await["calls_at_once"] == 4;
        if eased {
            break;
        }
    }
    for job in jobs {
        assert_eq!(service.ended(&job.id()).await.body["status"], "succeeded");
    }
    assert!(limits(&service).await["gate"].is_null(), "an overload closes no gate");
}
