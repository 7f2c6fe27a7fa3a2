//! A fault of one question is not a fault of all, and a fault of all is not a fault of the question.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use ceoagent::claude::simulator::{ErrorAnswer, Fault, Simulator};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Answer, Service, Setup, simulator};

const OURS: &str = "claude-sonnet-5-5";
const FALLBACK: &str = "claude-haiku-5-5";
const OTHER: &str = "claude-opus-5-5";

/// What the one question has that Claude, or something before it, turns away.
const POISON: &str = "DROP TABLE offers";

fn is_poisoned(request: &Value) -> bool {
    request["messages"].to_string().contains(POISON)
}

fn page(status: u16) -> ErrorAnswer {
    ErrorAnswer::status(status).html("<html><h1>Request blocked</h1></html>")
}

fn limited(seconds: &str) -> ErrorAnswer {
    ErrorAnswer::status(429).header("retry-after", seconds)
}

/// Outcome and error code of each attempt.
fn history(job: &Value) -> Vec<(&str, &str)> {
    let attempts = job["attempts"].as_array().unwrap();
    let code = |attempt: &'_ Value| attempt["error"]["code"].as_str().unwrap_or("").to_owned();
    attempts.iter().map(|attempt| (attempt["outcome"].as_str().unwrap(), code(attempt).leak() as &str)).collect()
}

async fn outcome(service: &Service) -> Value {
    ask(service, json!({ "query": "Should we move the head office?" })).await
}

async fn ask(service: &Service, body: Value) -> Value {
    let id = service.post("/api/v1/analyze", &body).await.id();
    service.ended(&id).await.body
}

async fn reasons(service: &Service) -> Value {
    service.get("/health/ready").await.body["reasons"].clone()
}

/// The job once its attempt has been given back.
async fn given_back(service: &Service, id: &str) -> Value {
    loop {
        let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
        if job["status"] != "running" && job["attempts"] != json!([]) {
            return job;
        }
    }
}

/// Readiness once it names a reason.
async fn degraded(service: &Service) -> Value {
    loop {
        let reasons = reasons(service).await;
        if reasons.is_array() {
            return reasons[0].clone();
        }
        tokio::task::yield_now().await;
    }
}

/// Asks a poisoned question and then 99 harmless ones; gives the ids of these.
async fn hundred(service: &Service) -> (String, Vec<String>) {
    let poisoned = service.submit(&format!("Shall we run {POISON}?")).await.id();
    let requests: Vec<Value> = (0..99).map(|n| json!({ "query": format!("Should we open shop {n}?") })).collect();
    let batch = service.post("/api/v1/analyze/batch", &json!({ "requests": requests })).await;
    let jobs = batch.body["jobs"].as_array().unwrap_or_else(|| panic!("{batch:#?}"));
    (poisoned, jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect())
}

/// With whatever only one of a hundred questions meets, the other 99 are answered, each by its first call that counts, and
/// the one was called a handful of times.
async fn only_one_of_a_hundred(answer: ErrorAnswer, workers: &str) {
    let claude = simulator().await;
    claude.always(is_poisoned, answer.clone());
    let service = Setup::new(&claude.base_url()).with("WORKERS", workers).start();
    let (poisoned, others) = hundred(&service).await;
    for id in others {
        let job = service.ended(&id).await.body;
        assert_eq!(job["status"], "succeeded", "{answer:?}: {job:#}");
        let spent: Vec<_> = history(&job).into_iter().filter(|(outcome, _)| *outcome != "released").collect();
        assert_eq!(spent, [("succeeded", "")], "{answer:?}: no attempt is spent on another's fault");
    }
    let job = service.get(&format!("/api/v1/jobs/{poisoned}")).await.body;
    assert_ne!(job["status"], "succeeded");
    let calls = claude.calls();
    let turned_away = calls.iter().filter(|call| is_poisoned(&call.json())).count();
    assert!((1..=7).contains(&turned_away), "{answer:?}: {turned_away} of {} calls were for the one", calls.len());
    assert_eq!(calls.len() - turned_away, 99, "{answer:?}: nobody else was turned away");
}

macro_rules! one_of_a_hundred {
    ($($name:ident: $answer:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                for workers in ["1", "8"] {
                    only_one_of_a_hundred($answer, workers).await;
                }
            }
        )*
    };
}

/// What only one question meets holds nobody else.
mod one_question_that {
    use super::*;

    one_of_a_hundred! {
        a_firewall_blocks_with_403: page(403);
        a_firewall_blocks_with_406: page(406);
        a_firewall_blocks_with_400: page(400);
        a_firewall_sends_elsewhere: page(302);
        a_gateway_answers_401: page(401);
        a_gateway_does_not_find: page(404);
        is_not_permitted: ErrorAnswer::status(403);
        meets_a_refused_key: ErrorAnswer::status(401);
        meets_no_credit: ErrorAnswer::status(400).message("Your credit balance is too low");
        is_not_found: ErrorAnswer::status(404);
        is_a_bad_request: ErrorAnswer::status(400);
        is_over_the_rate_limit_for_an_hour: limited("3600");
        is_over_the_rate_limit_of_a_gateway: page(429);
        is_overloaded: ErrorAnswer::status(529);
        meets_a_bad_gateway: page(502);
        gets_a_page_with_200: page(200);
        is_gone: page(410);
        is_unavailable_for_legal_reasons: page(451);
        is_overloaded_by_a_page: page(529);
    }
}

#[tokio::test]
async fn a_question_that_alone_is_turned_away_again_and_again_ends_as_poisoned() {
    let claude = simulator().await;
    claude.always(is_poisoned, page(403).header("retry-after-ms", "1"));
    let service = Setup::new(&claude.base_url()).start();
    let job = ask(&service, json!({ "query": POISON })).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("poisoned")), "{job:#}");
    assert!(job["error"]["message"].as_str().unwrap().contains("Request blocked"), "{job:#}");
    assert_eq!(history(&job), [("failed", "permission_denied"); 7]);
    assert_eq!(reasons(&service).await, Value::Null);
}

#[tokio::test]
async fn a_page_that_two_different_questions_meet_holds_the_queue_until_a_third_is_answered() {
    tokio::join!(a_page_holds_the_queue(403, "permission_denied"), a_page_holds_the_queue(200, "malformed_response"));
}

async fn a_page_holds_the_queue(status: u16, code: &str) {
    let claude = simulator().await;
    claude.always(|_| true, page(status));
    let service = Setup::new(&claude.base_url()).with("MAX_RETRIES", "0").start();
    let ids = [service.submit("First?").await.id(), service.submit("Second?").await.id()];
    let reason = degraded(&service).await;
    assert_eq!((&reason["code"], reason.get("until")), (&json!(code), None), "{reason:#}");
    claude.relent();
    assert_eq!(outcome(&service).await["status"], "succeeded");
    for id in ids {
        assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    }
    assert_eq!(reasons(&service).await, Value::Null);
}

#[tokio::test]
async fn a_400_that_is_not_the_questions_holds_the_queue_and_spends_nothing() {
    let bad = || ErrorAnswer::status(400);
    let wrapped = r#"{"error": {"message": "BadRequestError: AnthropicException - {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"Your credit balance is too low\"}}", "type": "None", "param": "None", "code": "400"}}"#;
    let cases = [
        (bad().message("Your credit balance is too low to access the Claude API."), "billing_failed"),
        (bad().html(wrapped), "billing_failed"),
        (bad().message("You have reached your specified API usage limits."), "billing_failed"),
        (bad().html(r#"{"error": {"message": "Budget has been exceeded! Current cost: 3.1", "type": "budget_exceeded"}}"#), "billing_failed"),
        (bad().html(r#"{"error": {"message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}}"#), "authentication_failed"),
        (bad().html(r#"{"message": "The provided model identifier is invalid."}"#), "model_not_found"),
        (ErrorAnswer::status(500).html(wrapped), "billing_failed"),
        (ErrorAnswer::status(429).html(r#"{"error": {"message": "You exceeded your current quota, please check your plan"}}"#), "billing_failed"),
        (bad().message("You have reached your specified workspace API usage limits."), "billing_failed"),
        (bad().error_code("organization_on_hold"), "permission_denied"),
        (bad().error_code("cmek_key_disabled"), "permission_denied"),
        (bad().error_code("cmek_key_network_blocked"), "permission_denied"),
    ];
    // In each, the queue is blocked for seconds.
    join_all(cases.map(async |(answer, code)| {
        let claude = simulator().await;
        claude.always(|_| true, answer.clone());
        let service = Setup::new(&claude.base_url()).with("MAX_RETRIES", "0").start();
        let id = service.submit("Shall we open a second counter?").await.id();
        assert_eq!(degraded(&service).await["code"], code, "{answer:?}");
        let job = given_back(&service, &id).await;
        assert_eq!(
            (history(&job), &job["queue"]["waiting_for"]),
            (vec![("released", code)], &json!("gate")),
            "{job:#}"
        );
        claude.relent();
        assert_eq!(outcome(&service).await["status"], "succeeded");
        assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    }))
    .await;
}

#[tokio::test]
async fn the_same_400_for_three_different_questions_in_a_row_holds_the_queue() {
    let claude = simulator().await;
    for n in 0..3 {
        claude.always(
            move |request| request["messages"].to_string().contains(&format!("shop {n}?")),
            ErrorAnswer::status(400).message(format!("messages.{n}: no such thing")),
        );
    }
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
    let ask = async |n| service.submit(&format!("Open shop {n}?")).await.id();
    for n in [0, 1] {
        assert_eq!(service.ended(&ask(n).await).await.body["error"]["code"], "invalid_request");
    }
    let third = ask(2).await;
    let reason = degraded(&service).await;
    assert_eq!(reason["code"], "invalid_request", "{reason:#}");
    assert_eq!(history(&given_back(&service, &third).await), [("released", "invalid_request")]);
    let fourth = ask(3).await;
    assert_eq!(service.ended(&fourth).await.body["status"], "succeeded", "the probe takes another question");
    let job = service.ended(&third).await.body;
    assert_eq!(job["error"]["code"], "invalid_request", "it was the question's own after all: {job:#}");
}

/// What stats say of a model.
async fn known(service: &Service, model: &str) -> Value {
    let stats = service.admin_get("/api/v1/admin/stats").await.body;
    let models = stats["models"].as_array().unwrap_or_else(|| panic!("{stats:#}"));
    models.iter().find(|known| known["model"] == model).cloned().unwrap_or_else(|| panic!("{stats:#}"))
}

/// A Claude whose `model` refuses a request that has this member, in these words.
fn refusing(claude: &Simulator, model: &'static str, member: &'static str, message: &str) {
    let has = move |request: &Value| request["model"] == model && request.pointer(member).is_some();
    claude.always(has, ErrorAnswer::status(400).message(message));
}

#[tokio::test]
async fn a_fallback_model_that_takes_no_effort_is_asked_without_it() {
    let claude = simulator().await;
    refusing(&claude, FALLBACK, "/output_config/effort", "This model does not support the effort parameter.");
    claude.script([ErrorAnswer::status(529).into()]);
    let service = Setup::new(&claude.base_url()).with("MODEL_NAME", &format!("{OURS},{FALLBACK}")).start();
    let job = outcome(&service).await;
    assert_eq!(history(&job), [("failed", "overloaded"), ("released", "invalid_request"), ("succeeded", "")]);
    assert_eq!(job["answered_by"], FALLBACK);
    assert_eq!(known(&service, FALLBACK).await["left_out"], json!(["effort"]));
    service.until_said("effort is no longer sent");
}

#[tokio::test]
async fn what_a_model_or_gateway_refuses_is_left_out_from_then_on() {
    for (member, message, name) in [
        ("/output_config/effort", "This model does not support the effort parameter.", "effort"),
        ("/output_config", "output_config: Extra inputs are not permitted", "output_config"),
        ("/output_config/format", "output_config.format: Schema is too complex for compilation", "format"),
        ("/system/0/cache_control", "system.0.cache_control: Extra inputs are not permitted", "cache_control"),
    ] {
        let claude = simulator().await;
        refusing(&claude, OURS, member, message);
        let service = Setup::new(&claude.base_url()).with("WORKERS", "1").with("MAX_RETRIES", "0").start();
        assert_eq!(history(&outcome(&service).await), [("released", "invalid_request"), ("succeeded", "")], "{name}");
        assert_eq!(history(&ask(&service, json!({ "query": "And now?" })).await), [("succeeded", "")], "learnt once");
        assert_eq!(known(&service, OURS).await["left_out"], json!([name]));
        assert_eq!(reasons(&service).await, Value::Null);
    }
}

#[tokio::test]
async fn thinking_that_a_model_refuses_is_learnt_from_one_call_and_left_out() {
    let claude = simulator().await;
    refusing(&claude, OURS, "/thinking", "thinking: Input tag 'between_tools' does not match any of the expected tags");
    let service = Setup::new(&claude.base_url()).with("WORKERS", "1").with("MAX_RETRIES", "0").start();
    let ask = async |query| service.post("/api/v1/analyze", &json!({ "query": query, "wait": true })).await.body;
    let job = ask("In a hurry?").await;
    assert_eq!(history(&job), [("released", "invalid_request"), ("succeeded", "")], "{job:#}");
    assert_eq!(history(&ask("And this one?").await), [("succeeded", "")]);
    let sent: Vec<bool> = claude.calls().iter().map(|call| call.json().get("thinking").is_some()).collect();
    assert_eq!(sent, [true, false, false]);
    assert_eq!(known(&service, OURS).await["left_out"], json!(["thinking"]));
    service.until_said("thinking is no longer sent");
}

#[tokio::test]
async fn max_tokens_is_what_the_model_named_and_never_more_than_its_list_says() {
    let claude = simulator().await;
    claude.always(
        |request| request["max_tokens"].as_u64() > Some(8_192),
        ErrorAnswer::status(400)
            .message("max_tokens: 64000 > 8192, which is the maximum allowed number of output tokens"),
    );
    let service = Setup::new(&claude.base_url()).with("MAX_TOKENS", "100000").start();
    while known(&service, OURS).await["max_tokens"] != 64_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(history(&outcome(&service).await), [("released", "invalid_request"), ("succeeded", "")]);
    let asked: Vec<Value> = claude.calls().iter().map(|call| call.json()["max_tokens"].clone()).collect();
    assert_eq!(asked, [64_000, 8_192]);
    assert_eq!(known(&service, OURS).await["max_tokens"], 8_192);
}

#[tokio::test]
async fn a_fallback_model_never_fails_a_job_that_its_own_model_answers() {
    for answer in [
        ErrorAnswer::status(400).message("this model knows no such thing"),
        ErrorAnswer::status(400).message("prompt is too long"),
        ErrorAnswer::status(403),
        ErrorAnswer::status(413),
        ErrorAnswer::status(404).message(format!("model: {FALLBACK}")),
    ] {
        let claude = simulator().await;
        claude.always(|request| request["model"] == FALLBACK, answer.clone());
        claude.script([ErrorAnswer::status(529).into()]);
        let service = Setup::new(&claude.base_url()).with("MODEL_NAME", &format!("{OURS},{FALLBACK}")).start();
        let job = outcome(&service).await;
        assert_eq!((&job["status"], &job["answered_by"]), (&json!("succeeded"), &json!(OURS)), "{answer:?}: {job:#}");
        assert_eq!(reasons(&service).await, Value::Null, "{answer:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_holds_the_queue_and_is_named() {
    let proxy = simulator().await;
    proxy.always(|_| true, page(407));
    let address = proxy.base_url();
    let service = Setup::new("http://claude.invalid").with("HTTP_PROXY", &address).start();
    service.submit("Anyone there?").await;
    let reason = degraded(&service).await;
    assert_eq!(reason["code"], "proxy_refused", "{reason:#}");
    assert!(reason["message"].as_str().unwrap().contains(address.trim_start_matches("http://")), "{reason:#}");
}

#[tokio::test]
async fn a_proxy_that_refuses_the_tunnel_is_named_and_wants_a_password_or_is_tried_again() {
    for (answer, code) in [
        ("407 Proxy Authentication Required\r\nproxy-authenticate: Basic", Some("proxy_refused")),
        ("403 Forbidden", None),
        ("502 Bad Gateway", None),
    ] {
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = proxy.local_addr().unwrap();
        thread::spawn(move || {
            for connection in proxy.incoming() {
                let mut connection = connection.unwrap();
                let mut head = [0; 4_096];
                let length = connection.read(&mut head).unwrap();
                assert!(length == 0 || head.starts_with(b"CONNECT api.gateway.invalid:443 "));
                let _ = write!(connection, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
            }
        });
        let service = Setup::new("https://api.gateway.invalid")
            .with("HTTPS_PROXY", &format!("http://{address}"))
            .with("MAX_RETRIES", if code.is_some() { "0" } else { "1" })
            .start();
        let id = service.submit("Anyone behind it?").await.id();
        let message = match code {
            Some(code) => {
                let reason = degraded(&service).await;
                assert_eq!(reason["code"], code, "{answer}: {reason:#}");
                reason["message"].clone()
            }
            None => {
                let attempt = given_back(&service, &id).await["attempts"][0].clone();
                assert_eq!(attempt["error"]["code"], "connect_failed", "{answer}: {attempt:#}");
                assert_eq!(attempt["may_have_been_billed"], false, "{attempt:#}");
                attempt["error"]["message"].clone()
            }
        };
        let message = message.as_str().unwrap();
        assert!(message.contains(&address.to_string()) && message.contains("HTTPS_PROXY"), "{answer}: {message}");
    }
}

#[tokio::test]
async fn a_question_that_one_model_declines_is_asked_of_another_and_the_job_names_both() {
    let claude = simulator().await;
    claude.always(|request| request["model"] == OURS, Fault::Refusal);
    let fallbacks = format!("{FALLBACK},{OTHER}");
    let service = Setup::new(&claude.base_url())
        .with("MODEL_NAME", &format!("{OURS},{fallbacks}"))
        .with("MAX_RETRIES", "0")
        .start();
    let job = outcome(&service).await;
    assert_eq!(history(&job), [("failed", "refused"), ("succeeded", "")]);
    assert_eq!((&job["answered_by"], &job["refused_by"]), (&json!(FALLBACK), &json!([OURS])), "{job:#}");
    let named = ask(&service, json!({ "query": "By that one?", "model": OURS })).await;
    assert_eq!((history(&named), &named["refused_by"]), (vec![("failed", "refused")], &json!([OURS])));
}

#[tokio::test]
async fn a_question_that_all_models_decline_is_asked_of_each_once_and_fails() {
    let claude = simulator().await;
    claude.always(|request| request["model"] != OTHER, Fault::Refusal);
    let filtered = ErrorAnswer::status(400).message("Output blocked by content filtering policy");
    claude.always(|request| request["model"] == OTHER, filtered);
    let fallbacks = format!("{FALLBACK},{OTHER}");
    let service = Setup::new(&claude.base_url()).with("MODEL_NAME", &format!("{OURS},{fallbacks}")).start();
    let job = outcome(&service).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("refused")), "{job:#}");
    assert_eq!(job["refused_by"], json!([OURS, FALLBACK, OTHER]));
    let id = job["id"].as_str().unwrap();
    claude.relent();
    let retried: Answer = service.post(&format!("/api/v1/jobs/{id}/retry"), &json!({})).await;
    assert_eq!(retried.status, 202, "{retried:#?}");
    assert_eq!(service.ended(id).await.body["answered_by"], OURS, "a retry asks the preferred model again");
}

#[tokio::test]
async fn a_closed_gate_of_our_model_holds_no_job_that_names_another() {
    for workers in ["1", "8"] {
        for answer in [ErrorAnswer::status(403), limited("3600")] {
            let claude = simulator().await;
            claude.always(|request| request["model"] == OURS, answer.clone());
            let service = Setup::new(&claude.base_url()).with("WORKERS", workers).start();
            let mut ours = Vec::new();
            for n in 0..20 {
                ours.push(service.submit(&format!("Open shop {n}?")).await.id());
            }
            degraded(&service).await;
            for n in 0..3 {
                let named = json!({ "query": format!("By that one, for shop {n}?"), "model": OTHER });
                let job = ask(&service, named).await;
                assert_eq!(history(&job), [("succeeded", "")], "{workers} {answer:?}: {job:#}");
            }
            let stats = service.admin_get("/api/v1/admin/stats").await.body["limits"].clone();
            let gates = stats["models"].as_array().unwrap().iter();
            let gates: Vec<_> =
                gates.map(|known| (known["model"].as_str().unwrap(), known["gate"].is_null())).collect();
            assert_eq!(gates, [(OTHER, true), (OURS, false)], "{stats:#}");
            assert_eq!(reasons(&service).await[0]["code"], stats["gate"]["reason"], "ours are still held");
            for id in ours {
                let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
                assert!(job["finished_at"].is_null(), "{job:#}");
            }
        }
    }
}

#[tokio::test]
async fn a_model_that_a_caller_named_fails_or_delays_its_own_job_alone() {
    for (answer, code) in [
        (ErrorAnswer::status(403), Some("permission_denied")),
        (ErrorAnswer::status(404).message("no such deployment"), Some("model_not_found")),
        (page(404), Some("model_not_found")),
        (page(403), None),
        (limited("3600"), None),
        (ErrorAnswer::status(529), None),
    ] {
        let claude = simulator().await;
        claude.always(|request| request["model"] == OTHER, answer.clone());
        let service = Setup::new(&claude.base_url()).with("WORKERS", "1").start();
        let named = service.post("/api/v1/analyze", &json!({ "query": "By that one?", "model": OTHER })).await.id();
        claude.wait_for_calls(1).await;
        let job = outcome(&service).await;
        assert_eq!(history(&job), [("succeeded", "")], "{answer:?}: {job:#}");
        assert_eq!(reasons(&service).await, Value::Null, "{answer:?}");
        if let Some(code) = code {
            assert_eq!(service.ended(&named).await.body["error"]["code"], code, "{answer:?}");
        }
    }
}
