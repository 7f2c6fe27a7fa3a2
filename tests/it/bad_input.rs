//! Requests that can't be served: each gets the right problem, in words that help, and leaves nothing in the queue.

use reqwest::{Method, RequestBuilder, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::harness::{ADMIN_TOKEN, Answer, Service, Setup, send, simulator};

const ANALYZE: &str = "/api/v1/analyze";
const LISTING: &str = "/api/v1/admin/jobs";
const NO_JOB: &str = "/api/v1/jobs/019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70";

/// How many jobs there are, whatever their state.
async fn jobs(service: &Service) -> u64 {
    let listing = service.admin_get(LISTING).await;
    listing.body["total"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

/// Asserts that the problem's detail has these words.
#[track_caller]
fn assert_says(answer: &Answer, words: &str) {
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains(words), "{words:?} is not in {detail:?}");
}

fn post_text(service: &Service, text: impl Into<reqwest::Body>) -> RequestBuilder {
    service.request(Method::POST, ANALYZE).header(CONTENT_TYPE, "application/json").body(text)
}

#[tokio::test]
async fn each_invalid_question_is_refused_with_its_field_and_none_is_enqueued() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("MAX_QUERY_LENGTH", "20").start();
    for (body, field, message) in [
        (json!({}), "query", "is required"),
        (json!({"query": null}), "query", "is required"),
        (json!({"query": ""}), "query", "must not be blank"),
        (json!({"query": " \n\t\u{3000}"}), "query", "must not be blank"),
        (json!({"query": "迁".repeat(21)}), "query", "must be at most 20 characters, not 21"),
        (json!({"query": 5}), "query", "invalid type: integer `5`, expected a string"),
        (json!({"query": ["q"]}), "query", "invalid type: sequence, expected a string"),
        (json!({"query": "q", "options": ["a", 2]}), "options[1]", "invalid type: integer `2`, expected a string"),
        (json!({"query": "q", "options": ["a", " "]}), "options[1]", "must not be blank"),
        (
            json!({"query": "q", "options": (0..11).map(|o| o.to_string()).collect::<Vec<_>>()}),
            "options",
            "at most 8, not 11",
        ),
        (json!({"query": "q", "options": ["Go", " go"]}), "options[1]", "must not be the same as options[0]"),
        (json!({"query": "q", "context": "c".repeat(50_001)}), "context", "at most 50000 characters, not 50001"),
        (
            json!({"query": "q", "priority": "urgent"}),
            "priority",
            "unknown variant `urgent`, expected one of `high`, `normal`, `low`",
        ),
        (json!({"query": "q", "priority": 5}), "priority", "invalid type: integer `5`, expected string"),
        (json!({"query": "q", "metadata": "x"}), "metadata", "invalid type: string \"x\", expected a map"),
        (json!({"query": "q", "metadata": {"a": 1}}), "metadata.a", "invalid type: integer `1`, expected a string"),
        (json!({"query": "q", "model": "a b"}), "model", "letters, digits"),
        (
            json!({"query": "q", "model": "claude-opus-9"}),
            "model",
            "ALLOWED_MODELS lists: claude-fable-5-1, claude-fable-5-2,",
        ),
        (json!({"query": "q", "run_at": "tomorrow"}), "run_at", "tomorrow"),
        (json!({"query": "q", "run_at": "2999-01-01T00:00:00Z"}), "run_at", "at most 366 days ahead"),
        (json!({"query": "q", "deadline_seconds": 0}), "deadline_seconds", "from 1 to 604800, not 0"),
        (json!({"query": "q", "wait": "soon"}), "wait", "true, false or a number of seconds"),
        (json!({"query": "q", "wait": -1}), "wait", "true, false or a number of seconds"),
        (json!({"query": "q", "qeury": 1}), "qeury", "unknown field, expected one of `query`, `context`,"),
        (json!(["q"]), "$", "must be a JSON object"),
        (json!("q"), "$", "invalid type: string \"q\", expected an object"),
    ] {
        let answer = service.post(ANALYZE, &body).await;
        answer.assert_problem(422, "validation_failed");
        let errors = answer.body["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{body}: {answer:#?}");
        assert_eq!(errors[0]["field"], field, "{body}: {answer:#?}");
        assert!(errors[0]["message"].as_str().unwrap().contains(message), "{body}: {answer:#?}");
        assert_says(&answer, field);
    }
    assert_eq!((jobs(&service).await, claude.counters().calls), (0, 0));
}

#[tokio::test]
async fn a_question_of_the_longest_length_that_can_be_set_is_taken_however_it_is_written() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).with("MAX_QUERY_LENGTH", "100000").start();
    // Twelve bytes for one character, the most that JSON can make of one.
    let question = |length| format!("{{\"query\": \"{}\"}}", "\\ud83d\\ude80".repeat(length));
    let answer = send(post_text(&service, question(100_000))).await;
    assert_eq!(answer.status, 202, "{answer:#?}");
    let job = service.ended(&answer.id()).await.body;
    assert_eq!((job["query"].as_str(), &job["status"]), (Some(&*"🚀".repeat(100_000)), &json!("succeeded")));
    let answer = send(post_text(&service, question(100_001))).await;
    answer.assert_problem(422, "validation_failed");
    assert_says(&answer, "at most 100000 characters, not 100001");
}

#[tokio::test]
async fn everything_wrong_with_a_question_is_told_at_once() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let body = json!({
        "question": "q", "query": " ", "timeout": 5, "options": ["", 5, "a", "a"], "temperature": 1, "wait": [], "model": 9
    });
    let answer = service.post(ANALYZE, &body).await;
    answer.assert_problem(422, "validation_failed");
    let mut fields: Vec<&str> =
        answer.body["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    let all =
        ["model", "options[0]", "options[1]", "options[3]", "query", "question", "temperature", "timeout", "wait"];
    assert_eq!(fields, all);
    assert_eq!(jobs(&service).await, 0);
}

#[tokio::test]
async fn each_request_that_makes_no_sense_gets_its_problem_and_leaves_nothing() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let get = |path: &str| service.request(Method::GET, path);
    let post = |path: &str| service.request(Method::POST, path).json(&json!({"query": "q"}));
    let list = |parameters: &str| get(&format!("{LISTING}?{parameters}")).bearer_auth(ADMIN_TOKEN);
    for (request, status, code, words) in [
        (post_text(&service, "{\"query\": "), 400, "invalid_json", "line 1 column"),
        (post_text(&service, "{\"query\": \"q\"} x"), 400, "invalid_json", "line 1 column"),
        (post_text(&service, ""), 400, "invalid_json", "empty"),
        (post_text(&service, &b"{\"query\": \"\xff\"}"[..]), 400, "invalid_json", "not valid JSON"),
        (service.request(Method::POST, ANALYZE).body("{}"), 415, "unsupported_media_type", "application/json"),
        (
            service.request(Method::POST, ANALYZE).header(CONTENT_TYPE, "text/plain").body("{}"),
            415,
            "unsupported_media_type",
            "application/json",
        ),
        (get("/api/v1/analyse"), 404, "not_found", "/docs"),
        (get(NO_JOB), 404, "job_not_found", "019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70"),
        (post(&format!("{NO_JOB}/cancel")), 404, "job_not_found", "not found"),
        (post(&format!("{NO_JOB}/retry")), 404, "job_not_found", "not found"),
        (get(&format!("{NO_JOB}?wait=1")), 404, "job_not_found", "not found"),
        (get("/api/v1/jobs/4711"), 400, "invalid_job_id", "not a UUID"),
        (post("/api/v1/jobs/4711/cancel"), 400, "invalid_job_id", "not a UUID"),
        (get(&format!("{NO_JOB}?wait=soon")), 400, "invalid_parameter", "true, false or a number of seconds"),
        (get(&format!("{NO_JOB}?wiat=1")), 400, "invalid_parameter", "wiat"),
        (post(&format!("{ANALYZE}?wait=-1")), 400, "invalid_parameter", "true, false or a number of seconds"),
        (list("cursor=x"), 400, "invalid_parameter", "cursor"),
        (list("limit=0"), 400, "invalid_parameter", "from 1 to 200"),
        (list("limit=201"), 400, "invalid_parameter", "from 1 to 200"),
        (list("limit=many"), 400, "invalid_parameter", "from 1 to 200"),
        (list("status=done"), 400, "invalid_parameter", "queued, scheduled, running, succeeded, failed, cancelled"),
        (list("page=2"), 400, "invalid_parameter", "order, include, limit and cursor"),
    ] {
        let answer = send(request).await;
        answer.assert_problem(status, code);
        assert_says(&answer, words);
    }
    assert_eq!((jobs(&service).await, claude.counters().calls), (0, 0));
}

#[tokio::test]
async fn a_body_of_any_excess_is_refused_and_its_sender_told_so() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    for bytes in [256 * 1024 + 1, 4 << 20] {
        let answer = send(post_text(&service, "x".repeat(bytes))).await;
        answer.assert_problem(413, "body_too_large");
        assert_says(&answer, "256 KiB");
    }
    assert_eq!(jobs(&service).await, 0);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let cancel = format!("{NO_JOB}/cancel");
    for (method, path, allowed) in [
        (Method::GET, ANALYZE, "POST"),
        (Method::PUT, ANALYZE, "POST"),
        (Method::PUT, NO_JOB, "GET,HEAD,DELETE"),
        (Method::GET, &cancel, "POST"),
        (Method::POST, "/health", "GET,HEAD"),
        (Method::POST, LISTING, "GET,HEAD"),
    ] {
        let answer = send(service.request(method.clone(), path)).await;
        answer.assert_problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
        assert_says(&answer, method.as_str());
    }
}

#[tokio::test]
async fn the_admin_listing_opens_to_the_right_token_only() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let list = || service.request(Method::GET, LISTING);
    for request in [
        list(),
        list().bearer_auth("another-token-for-tests"),
        list().bearer_auth(&ADMIN_TOKEN[1..]),
        list().bearer_auth(""),
        list().basic_auth("admin", Some(ADMIN_TOKEN)),
        list().header("authorization", ADMIN_TOKEN),
    ] {
        let answer = send(request).await;
        answer.assert_problem(401, "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
        assert!(!answer.body.to_string().contains(ADMIN_TOKEN));
    }
    assert_eq!(send(list().bearer_auth(ADMIN_TOKEN)).await.status, 200);
}

#[tokio::test]
async fn a_sane_request_id_is_kept_with_the_job_and_any_other_is_replaced() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url()).start();
    let ask = |id: &str| {
        let request = service.request(Method::POST, ANALYZE).json(&json!({"query": "Which id?"}));
        send(request.header("x-request-id", id))
    };
    let answer = ask("order-4711/a").await;
    assert_eq!(answer.header("x-request-id"), "order-4711/a");
    assert_eq!(service.ended(&answer.id()).await.body["request_id"], "order-4711/a");
    for insane in ["two words", &"x".repeat(129)] {
        let answer = ask(insane).await;
        let id = answer.header("x-request-id");
        assert!(uuid::Uuid::try_parse(id).is_ok(), "{id}");
        assert_eq!(answer.body["request_id"], *id);
    }
    let problem = send(service.request(Method::GET, NO_JOB).header("x-request-id", "mine")).await;
    assert_eq!(problem.assert_problem(404, "job_not_found").body["request_id"], Value::from("mine"));
}
