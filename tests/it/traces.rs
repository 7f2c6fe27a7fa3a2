//! Traces, as a real receiver of OTLP gets them.

use std::{collections::HashMap, sync::Arc};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::harness::{Setup, send, simulator};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

/// A receiver, and the spans that come.
async fn receiver() -> (String, UnboundedReceiver<Span>) {
    let (spans, received) = unbounded_channel();
    let receive = async |State(spans): State<Arc<UnboundedSender<Span>>>, body: Bytes| {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).for_each(|span| drop(spans.send(span)));
    };
    let router = Router::new().route("/v1/traces", post(receive)).with_state(Arc::new(spans));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, received)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_question_is_one_trace_from_its_client_through_the_queue_to_claude() {
    let (endpoint, mut received) = receiver().await;
    let claude = simulator().await;
    // Batches are sent at once, as nobody likes to wait in a test.
    let setup = Setup::new(&claude.base_url())
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .with("OTEL_BSP_SCHEDULE_DELAY", "50");
    let service = setup.start();
    let request = service
        .request(Method::POST, "/api/v1/analyze")
        .header("traceparent", format!("00-{TRACE}-{CLIENT}-01"))
        .json(&json!({"query": "Should we follow it?", "wait": true}));
    let answer = send(request).await;
    assert_eq!(answer.status, 200, "{answer:#?}");

    let mut spans = HashMap::new();
    while spans.len() < 3 {
        let span = received.recv().await.unwrap();
        if hex(&span.trace_id) == TRACE {
            spans.insert(span.name.clone(), span);
        }
    }
    let (http, job, call) = (&spans["POST /api/v1/analyze"], &spans["analyze"], &spans["chat"]);
    assert_eq!(hex(&http.parent_span_id), CLIENT);
    assert_eq!(job.parent_span_id, http.span_id, "the job belongs to the request that brought it");
    assert_eq!(job.links[0].span_id, http.span_id, "and is linked to it, as it may run much later");
    assert_eq!(call.parent_span_id, job.span_id);
    let noted: Vec<&str> = call.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    for name in ["gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"] {
        assert!(noted.contains(&name), "{name} is not in {noted:?}");
    }
    assert_ne!(call.status.as_ref().map(|status| status.code), Some(StatusCode::Error as i32));
}

#[tokio::test]
async fn a_trace_goes_on_to_the_callback_url_and_is_named_in_the_log() {
    let (endpoint, mut received) = receiver().await;
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url())
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .with("OTEL_BSP_SCHEDULE_DELAY", "50")
        .with("WEBHOOK_SECRET", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
        .with("WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8")
        .start();
    let (told, mut contexts) = unbounded_channel();
    let hook = async |State(told): State<UnboundedSender<String>>, headers: axum::http::HeaderMap| {
        let _ = told.send(headers["traceparent"].to_str().unwrap().to_owned());
    };
    let router = Router::new().route("/hook", post(hook)).with_state(told);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let request = service
        .request(Method::POST, "/api/v1/analyze")
        .header("traceparent", format!("00-{TRACE}-{CLIENT}-01"))
        .json(&json!({"query": "Should we be told?", "callback_url": url}));
    assert_eq!(send(request).await.status, 202);

    let context = contexts.recv().await.unwrap();
    let mut spans = HashMap::new();
    while spans.len() < 4 {
        let span = received.recv().await.unwrap();
        if hex(&span.trace_id) == TRACE {
            spans.insert(span.name.clone(), span);
        }
    }
    let webhook = &spans["webhook"];
    assert_eq!(context, format!("00-{TRACE}-{}-01", hex(&webhook.span_id)));
    assert_eq!(webhook.parent_span_id, spans["POST /api/v1/analyze"].span_id);
    service.until_said("webhook sent");
    let said = service.kill();
    for (words, span) in [
        ("request answered", "POST /api/v1/analyze"),
        ("Claude called", "analyze"),
        ("job finished", "analyze"),
        ("webhook sent", "webhook"),
    ] {
        let named = format!(" trace_id={TRACE} span_id={}", hex(&spans[span].span_id));
        let line = said.lines().find(|line| line.contains(words)).unwrap();
        assert!(line.ends_with(&named), "{line}");
    }
}

#[tokio::test]
async fn a_trace_is_named_in_lines_of_json() {
    let (endpoint, _received) = receiver().await;
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url())
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .with("LOG_FORMAT", "json")
        .start();
    let request = service
        .request(Method::POST, "/api/v1/analyze")
        .header("traceparent", format!("00-{TRACE}-{CLIENT}-01"))
        .json(&json!({"query": "Should we read it by machine?", "wait": true}));
    assert_eq!(send(request).await.status, 200);
    assert_eq!(service.get("/health/ready").await.status, 200);
    assert_eq!(service.get("/metrics").await.status, 200);
    let lines = ["request answered", "job finished", "Claude called"];
    lines.iter().for_each(|words| service.until_said(words));
    let said = service.kill();
    assert!(!said.contains("/health") && !said.contains("/metrics"), "calls of monitoring are no events: {said}");
    for words in lines {
        let line = said.lines().find(|line| line.contains(words)).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["trace_id"], TRACE, "{line}");
        assert_eq!(line["span_id"].as_str().unwrap().len(), 16, "{line}");
        assert!(line["duration_ms"].is_number(), "{line}");
    }
}

#[tokio::test]
async fn a_receiver_that_is_down_holds_nobody_up() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url()).with("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let service = setup.start();
    let id = service.submit("Should we go on without a receiver?").await.id();
    assert_eq!(service.ended(&id).await.body["status"], "succeeded");
}
