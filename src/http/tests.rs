//! The router over a store that is always unavailable: the errors that clients get.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use axum::routing;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{failures::Failures, memory::MemoryBudget, *};
use crate::{
    agent::models::Models,
    audit::AuditLog,
    auth::Auth,
    clock::{Clock, Timestamp},
    config::values::RateCaps,
    digest::ModelKey,
    job::callback::Callbacks,
    ledger::Spending,
    limits::Limits,
    metrics::Metrics,
    prompts::Prompts,
    queue::{Policy, Queue},
    registry::Registry,
    store::{
        FEED_LIMIT,
        fault::{FaultStore, Outage},
        memory::MemoryStore,
    },
    webhook::{Webhooks, secrets::Secrets},
};

const ID: &str = "019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70";

async fn api(closing: &CancellationToken) -> Api {
    api_in(Some(Outage::Fails), closing).await
}

/// The routes over a store that breaks down after the start.
async fn api_in(outage: Option<Outage>, closing: &CancellationToken) -> Api {
    let (metrics, least) = (Metrics::new(), Some(NonZeroU32::MIN));
    let (store, clock) = (Arc::new(FaultStore::over(MemoryStore::default())), Clock::system());
    let spending = Spending::default();
    let queue =
        Queue::open(store.clone(), clock.clone(), Policy::plain(), metrics.clone(), spending, closing.clone()).await;
    let queue = queue.unwrap();
    let registry = Registry::new(store.clone());
    let auth = Auth::load("s3cret".into(), None, None, false, registry.clone(), clock.clone()).await.unwrap();
    let least = RateCaps { requests: least, input_tokens: least, output_tokens: least };
    let limits = Limits::new(least, 1, None, Arc::new(|| ModelKey::of("m")));
    let caps = Arc::new(caps::Caps::new(limits.clone(), registry.clone()));
    let root = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into();
    let secrets = Secrets::derived(&root, registry, clock.clone()).unwrap();
    let webhooks = Webhooks::new(queue.clone(), store.clone(), secrets, Callbacks::default(), None, metrics.clone());
    if let Some(outage) = outage {
        store.break_down(outage);
    }
    Api {
        stopping: closing.clone(),
        webhooks: webhooks.unwrap(),
        auth: Arc::new(auth),
        audit: Arc::new(AuditLog::new(store.clone(), clock, None)),
        ledger: store.clone(),
        store,
        memory: MemoryBudget::new(64 << 20),
        refusals: observe::RefusalLog::default(),
        failures: Failures::new(None),
        trusted_proxies: Arc::default(),
        cors_origins: Vec::new(),
        public_url: None,
        models: Models::new("m".to_owned(), Vec::new(), Vec::new()),
        notes: Arc::new(Vec::new),
        dispatcher_missing_since: Arc::new(|| None),
        operations: queue.operations(),
        queue,
        limits,
        caps,
        prompts: Prompts::load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts")).unwrap(),
        metrics,
        callbacks: Callbacks::default(),
        max_query_length: 10,
        memos: memos::Memos::default(),
    }
}

/// Starts a server and returns its base URL.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    base
}

async fn start() -> String {
    serve(router(api(&CancellationToken::new()).await, |api| Router::new().fallback_service(api))).await
}

fn client() -> Client {
    // Fails if another test has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn post(base: &str) -> RequestBuilder {
    client().post(format!("{base}/api/v1/analyze"))
}

/// The status and body of an answer, which must be a complete problem with the request's id.
async fn problem(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    assert_eq!(kind, Some("application/problem+json"), "{response:?}");
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["request_id"], id, "{body}");
    assert_eq!(body["status"], status.as_u16(), "{body}");
    assert_eq!(body["type"], format!("/docs#problem-{}", body["code"].as_str().unwrap()));
    assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
    (status, body)
}

#[tokio::test]
async fn every_bad_request_is_a_problem_that_says_what_to_do() {
    let base = start().await;
    let works = api_in(None, &CancellationToken::new()).await;
    let works = serve(router(works, |api| Router::new().fallback_service(api))).await;
    let to = |path: &str| client().get(format!("{base}{path}"));
    let job = |query: &str| client().get(format!("{works}/api/v1/jobs/{ID}?{query}"));
    let json = |body: &'static str| post(&base).header("content-type", "application/json").body(body);
    for (request, status, code, hint) in [
        (to("/nowhere"), 404, "not_found", "/docs"),
        (to("/api/v1/analyze"), 405, "method_not_allowed", "GET"),
        (to("/api/v1/jobs/42"), 400, "invalid_job_id", "UUID"),
        (job("wait=x"), 400, "invalid_parameter", "number of seconds"),
        (job("wait=1"), 404, "job_not_found", ID),
        (to(&format!("/api/v1/jobs/{ID}")), 503, "storage_unavailable", "try again"),
        (to("/api/v1/admin/jobs"), 401, "unauthorized", "Bearer"),
        (to("/api/v1/admin/jobs").bearer_auth("wrong"), 401, "unauthorized", "not valid"),
        (to("/api/v1/admin/jobs?cursor=x").bearer_auth("s3cret"), 400, "invalid_parameter", "cursor"),
        (to("/api/v1/admin/jobs").bearer_auth("s3cret"), 503, "storage_unavailable", "try again"),
        (to("/health/ready"), 503, "not_ready", "no disk"),
        (post(&base).body("{}"), 415, "unsupported_media_type", "application/json"),
        (json("{"), 400, "invalid_json", "line 1 column 1"),
        (json(""), 400, "invalid_json", "empty"),
        (json("{\"query\":\"q\",\"a\":1,\"b\":2}"), 422, "validation_failed", "b: unknown field"),
        (json("{\"query\":\"12345678901\"}"), 422, "validation_failed", "at most 10 characters, not 11"),
        (post(&base).json(&"x".repeat(300_000)), 413, "body_too_large", "262144 bytes"),
        (post(&base).json(&json!({"query": "q"})), 503, "storage_unavailable", "try again"),
        (
            client().post(format!("{base}/api/v1/analyze?wait=soon")).json(&json!({"query": "q"})),
            400,
            "invalid_parameter",
            "wait",
        ),
    ] {
        let (got, body) = problem(request).await;
        assert_eq!((got.as_u16(), body["code"].as_str().unwrap()), (status, code), "{body}");
        assert!(body["detail"].as_str().unwrap().contains(hint), "{hint}: {body}");
    }
}

#[tokio::test]
async fn the_answer_to_a_wrong_method_lists_the_allowed_ones_and_to_a_missing_token_how_to_send_it() {
    let base = start().await;
    let response = client().put(format!("{base}/api/v1/jobs/{ID}")).send().await.unwrap();
    let allowed = response.headers()["allow"].to_str().unwrap();
    assert!(["GET", "HEAD", "DELETE"].iter().all(|method| allowed.contains(method)), "{allowed}");
    let response = client().get(format!("{base}/api/v1/admin/jobs")).send().await.unwrap();
    assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
}

#[tokio::test]
async fn every_answer_has_the_request_id_of_its_request() {
    let base = start().await;
    for path in ["/health", "/nowhere", "/metrics", "/openapi.json"] {
        let response = client().get(format!("{base}{path}")).header("x-request-id", "mine-1").send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine-1", "{path}");
    }
}

#[tokio::test]
async fn a_service_that_shuts_down_is_not_ready_but_alive() {
    let closing = CancellationToken::new();
    let base = serve(router(api(&closing).await, |api| Router::new().fallback_service(api))).await;
    closing.cancel();
    let (status, body) = problem(post(&base).json(&json!({"query": "q"}))).await;
    assert_eq!((status.as_u16(), body["code"].as_str().unwrap()), (503, "shutting_down"));
    let (_, body) = problem(client().get(format!("{base}/health/ready"))).await;
    assert_eq!(body["errors"][0]["field"], "service", "{body}");
    let health: Value = client().get(format!("{base}/health")).send().await.unwrap().json().await.unwrap();
    assert_eq!(health, json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn a_panic_is_answered_without_internal_details_and_the_next_request_is_served() {
    let api = Arc::new(api(&CancellationToken::new()).await);
    let panics: Router = Router::new()
        .route("/", routing::get(|| async { panic!("the secret recipe") as StatusCode }))
        .layer(from_fn_with_state(api, middleware::observe));
    let base = serve(panics).await;
    for _ in 0..2 {
        let (status, body) = problem(client().get(&base)).await;
        assert_eq!((status.as_u16(), body["code"].as_str().unwrap()), (500, "internal"));
        assert!(!body.to_string().contains("recipe"), "{body}");
    }
}

#[tokio::test]
async fn a_request_whose_handler_hangs_is_answered_within_thirty_seconds() {
    use tower::ServiceExt as _;
    tokio::time::pause();
    let api = Arc::new(api(&CancellationToken::new()).await);
    let hangs: Router = Router::new()
        .route("/", routing::get(std::future::pending::<StatusCode>))
        .layer(from_fn_with_state(api, middleware::observe));
    let start = tokio::time::Instant::now();
    let response = hangs.oneshot(axum::extract::Request::new(axum::body::Body::empty())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[tokio::test]
async fn metrics_count_by_route_pattern_and_show_the_gauges() {
    let base = start().await;
    for path in ["/api/v1/jobs/1", "/api/v1/jobs/2", "/a", "/b"] {
        client().get(format!("{base}{path}")).send().await.unwrap();
    }
    let response = client().get(format!("{base}/metrics")).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = response.text().await.unwrap();
    for line in [
        "ceoagent_http_requests_total{method=\"GET\",route=\"/api/v1/jobs/{id}\",status=\"400\"} 2",
        "ceoagent_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 2",
        "ceoagent_store_available 0",
        "ceoagent_jobs{kind=\"queued\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn the_document_is_served() {
    let base = start().await;
    let document: Value = client().get(format!("{base}/openapi.json")).send().await.unwrap().json().await.unwrap();
    assert_eq!(document, serde_json::to_value(openapi()).unwrap());
}

#[test]
fn the_document_has_every_route_and_no_dangling_reference() {
    let document = serde_json::to_value(openapi()).unwrap();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(
        paths,
        [
            "/api/v1/admin/audit",
            "/api/v1/admin/export",
            "/api/v1/admin/history",
            "/api/v1/admin/import",
            "/api/v1/admin/jobs",
            "/api/v1/admin/jobs/actions",
            "/api/v1/admin/jobs/{id}/reparse",
            "/api/v1/admin/keys",
            "/api/v1/admin/keys/{name}",
            "/api/v1/admin/limits",
            "/api/v1/admin/prompts",
            "/api/v1/admin/prompts/reload",
            "/api/v1/admin/queue/pause",
            "/api/v1/admin/queue/resume",
            "/api/v1/admin/stats",
            "/api/v1/admin/usage",
            "/api/v1/admin/webhooks/failing",
            "/api/v1/admin/webhooks/secret",
            "/api/v1/admin/webhooks/secret/rotate",
            "/api/v1/analyze",
            "/api/v1/analyze/batch",
            "/api/v1/jobs",
            "/api/v1/jobs/{id}",
            "/api/v1/jobs/{id}/cancel",
            "/api/v1/jobs/{id}/events",
            "/api/v1/jobs/{id}/resend-webhook",
            "/api/v1/jobs/{id}/retry",
            "/api/v1/webhooks/failing",
            "/api/v1/webhooks/secret",
            "/api/v1/webhooks/secret/rotate",
            "/api/v1/webhooks/test",
            "/health",
            "/health/ready",
            "/metrics"
        ]
    );
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is not among {:?}", schemas.keys());
    }
    assert!(schemas["Job"]["properties"]["result"].to_string().contains("Memo"), "{}", schemas["Job"]);
}

#[tokio::test]
async fn a_node_without_a_dispatcher_is_ready_and_says_since_when() {
    let since = Timestamp::from_millis(1_800_000_000_000);
    let api = api_in(None, &CancellationToken::new()).await;
    let api = Api { dispatcher_missing_since: Arc::new(move || Some(since)), ..api };
    let base = serve(router(api, |api| Router::new().fallback_service(api))).await;
    let ready = client().get(format!("{base}/health/ready")).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    let ready: Value = ready.json().await.unwrap();
    let reason = &ready["reasons"][0];
    assert_eq!((&ready["status"], &reason["code"]), (&json!("degraded"), &json!("no_dispatcher")), "{ready:#}");
    assert!(reason["message"].as_str().unwrap().contains(&since.to_string()), "{ready:#}");
    let stats = client().get(format!("{base}/api/v1/admin/stats")).bearer_auth("s3cret").send().await.unwrap();
    let stats: Value = stats.json().await.unwrap();
    assert_eq!(stats["no_dispatcher_since"], json!(since), "{stats:#}");
}

#[tokio::test]
async fn a_node_whose_feed_is_late_is_not_ready_and_says_why() {
    let store = Arc::new(FaultStore::over(MemoryStore::default()));
    let api = Api { store: store.clone(), ..api_in(None, &CancellationToken::new()).await };
    let base = serve(router(api, |api| Router::new().fallback_service(api))).await;
    let metric = async || {
        let metrics = client().get(format!("{base}/metrics")).send().await.unwrap().text().await.unwrap();
        metrics.lines().find_map(|line| line.strip_prefix("ceoagent_ready ")).unwrap().to_owned()
    };
    store.set_watch_lag(FEED_LIMIT + Duration::from_millis(1));
    let (status, body) = problem(client().get(format!("{base}/health/ready"))).await;
    assert_eq!((status.as_u16(), &body["code"]), (503, &json!("not_ready")), "{body:#}");
    assert_eq!(body["errors"][0]["field"], "feed", "{body:#}");
    assert!(body["errors"][0]["message"].as_str().unwrap().contains("more than 10 s late"), "{body:#}");
    assert_eq!(metric().await, "0");
    store.set_watch_lag(FEED_LIMIT);
    let ready = client().get(format!("{base}/health/ready")).send().await.unwrap();
    assert_eq!((ready.status(), metric().await.as_str()), (StatusCode::OK, "1"));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_client_is_answered_within_thirty_seconds_even_if_the_disk_hangs() {
    use tower::ServiceExt;
    for (outage, wait, status) in [
        (Outage::Hangs, "true", StatusCode::SERVICE_UNAVAILABLE),
        (Outage::HangsAfterInsert, "true", StatusCode::ACCEPTED),
        (Outage::HangsAfterInsert, "2", StatusCode::ACCEPTED),
        (Outage::HangsAfterInsert, "false", StatusCode::ACCEPTED),
    ] {
        let closing = CancellationToken::new();
        let question = axum::http::Request::post(format!("/api/v1/analyze?wait={wait}"))
            .header("content-type", "application/json")
            .header("host", "localhost")
            .body(axum::body::Body::from(r#"{"query": "q"}"#))
            .unwrap();
        let asked = Instant::now();
        let response = router(api_in(Some(outage), &closing).await, |api| Router::new().fallback_service(api))
            .oneshot(question)
            .await
            .unwrap();
        assert_eq!(response.status(), status, "wait={wait}");
        assert!(asked.elapsed() < Duration::from_millis(29_600), "wait={wait}: {:?}", asked.elapsed());
    }
}
