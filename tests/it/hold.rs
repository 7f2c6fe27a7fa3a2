//! What holds the queue until a person mends it, the models that stand in, and the look at the models at the start.

use ceoagent::claude::simulator::{ErrorAnswer, Fault};
use serde_json::{Value, json};

use crate::harness::{Service, Setup, simulator};

const OURS: &str = "claude-sonnet-5-5";
const FALLBACK: &str = "claude-haiku-5-5";

/// Model, outcome and error code of each attempt.
fn history(job: &Value) -> Vec<(&str, &str, &str)> {
    let attempts = job["attempts"].as_array().unwrap();
    attempts
        .iter()
        .map(|attempt| {
            (
                attempt["model"].as_str().unwrap_or(""),
                attempt["outcome"].as_str().unwrap(),
                attempt["error"]["code"].as_str().unwrap_or(""),
            )
        })
        .collect()
}

async fn outcome(service: &Service) -> Value {
    let id = service.submit("Should we move the head office?").await.id();
    service.ended(&id).await.body
}

/// Claude's word that a model is not there.
fn gone(model: &str) -> Fault {
    ErrorAnswer::status(404).message(format!("model: {model}")).into()
}

#[tokio::test]
async fn whatever_a_person_must_mend_holds_the_queue_with_one_loud_line_and_spends_nothing() {
    let spend_limit = ErrorAnswer::status(429).error_code("enforced_spend_limit_reached");
    for (answer, code) in [
        (ErrorAnswer::status(401), "authentication_failed"),
        (ErrorAnswer::status(402), "billing_failed"),
        (ErrorAnswer::status(403), "permission_denied"),
        (spend_limit, "billing_failed"),
        (ErrorAnswer::status(404).message(format!("model: {OURS}")), "model_not_found"),
    ] {
        let claude = simulator().await;
        claude.script(vec![Fault::from(answer); 8]);
        let service = Setup::new(&claude.base_url()).with("WORKERS", "8").with("MAX_RETRIES", "0").start();
        let mut ids = Vec::new();
        for n in 0..12 {
            ids.push(service.submit(&format!("Should we open shop {n}?")).await.id());
        }
        let ready = loop {
            let ready = service.get("/health/ready").await;
            let total = service.admin_get("/api/v1/admin/jobs?limit=1").await.body["total"].clone();
            // Those that met it are scheduled for after the next probe, which takes another.
            let waiting = ["queued", "scheduled"].map(|status| total[status].as_u64().unwrap_or_default());
            if ready.body["status"] == "degraded" && waiting.iter().sum::<u64>() == 12 {
                break ready;
            }
        };
        assert_eq!((ready.status, &ready.body["reasons"][0]["code"]), (200, &json!(code)), "{ready:#?}");
        assert_eq!(service.metric(&format!("ceoagent_queue_held{{kind=\"{code}\"}}")).await, "1");
        for id in ids {
            let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
            assert_eq!(job["queue"]["waiting_for"], "gate", "{job:#}");
            assert!(history(&job).iter().all(|(_, outcome, _)| *outcome == "released"), "{job:#}");
        }
        assert!(claude.counters().calls <= 8, "none was sent into the same wall");
        let log = service.kill();
        assert_eq!(log.matches("the queue is blocked").count(), 1, "{log}");
    }
}

#[tokio::test]
async fn a_fallback_model_answers_while_ours_is_overloaded_and_the_job_says_so() {
    let claude = simulator().await;
    claude.script([ErrorAnswer::status(529).into()]);
    let service = Setup::new(&claude.base_url()).with("MODEL_NAME", &format!("{OURS},{FALLBACK}")).start();
    let job = outcome(&service).await;
    assert_eq!(history(&job), [(OURS, "failed", "overloaded"), (FALLBACK, "succeeded", "")]);
    let next = outcome(&service).await;
    assert_eq!(history(&next), [(FALLBACK, "succeeded", "")], "it is passed over for a while");
    let body = json!({ "query": "By the deep one?", "model": "claude-opus-5-5", "wait": true });
    let named = service.post("/api/v1/analyze", &body).await.body;
    assert_eq!(history(&named), [("claude-opus-5-5", "succeeded", "")], "who names a model gets that one");
}

#[tokio::test]
async fn a_fallback_model_answers_where_ours_is_gone_and_no_attempt_is_spent() {
    let claude = simulator().await;
    claude.script([gone(OURS)]);
    let service = Setup::new(&claude.base_url())
        .with("MODEL_NAME", &format!("{OURS},{FALLBACK}"))
        .with("MAX_RETRIES", "0")
        .start();
    let job = outcome(&service).await;
    assert_eq!(history(&job), [(OURS, "released", "model_not_found"), (FALLBACK, "succeeded", "")]);
    assert_eq!(service.get("/health/ready").await.body["status"], "ready");
}

#[tokio::test]
async fn a_model_that_only_the_job_names_fails_that_job_and_holds_nobody() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("ALLOWED_MODELS", "claude-no-such").start();
    let body = json!({ "query": "By whom?", "model": "claude-no-such", "wait": true });
    service.post("/api/v1/analyze", &body).await.assert_problem(502, "model_not_found");
    assert_eq!(outcome(&service).await["status"], "succeeded");
    assert_eq!(service.get("/health/ready").await.body["status"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_model_ends_the_start_and_current_ones_are_named() {
    let claude = simulator().await;
    for model in ["claude-3-5-sonnet-20241022", "claude-no-such"] {
        let setup = Setup::new(&claude.base_url()).with("MODEL_NAME", model);
        let (status, said) = tokio::task::spawn_blocking(move || setup.run(&["serve"])).await.unwrap();
        assert!(!status.success(), "{said}");
        for word in [model, "MODEL_NAME", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"] {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
    assert_eq!(claude.counters().calls, 0);
}

#[tokio::test]
async fn a_retired_model_with_a_fallback_starts_and_asks_that() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url())
        .with("MODEL_NAME", &format!("claude-3-5-sonnet-20241022,claude-no-such,{FALLBACK}"))
        .start();
    let job = outcome(&service).await;
    assert_eq!((&job["status"], history(&job).last().unwrap().0), (&json!("succeeded"), FALLBACK), "{job:#}");
    service.until_said("the model is retired");
}

#[tokio::test]
async fn a_deprecated_model_is_told_with_its_date_and_a_gateway_without_the_route_is_no_reason_not_to_start() {
    let claude = simulator().await;
    for (base, model, words) in [
        (claude.base_url(), "claude-sonnet-4-5", ["the model is deprecated", "2026-11-30"]),
        (format!("{}/no/such/prefix", claude.base_url()), OURS, ["can't look up the model", "404"]),
        ("http://127.0.0.1:9".to_owned(), OURS, ["can't look up the model", "Connection refused"]),
    ] {
        let service = Setup::new(&base).with("MODEL_NAME", model).start();
        assert_eq!(service.get("/health").await.status, 200);
        // A stop would end the running lookup.
        service.until_said(words[0]);
        let log = service.kill();
        words.iter().for_each(|word| assert!(log.contains(word), "{word:?} is not in {log}"));
    }
}
