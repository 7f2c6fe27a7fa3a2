//! `/health`, `/health/ready`, `/metrics`: what monitoring asks.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    problem::{FieldError, NOT_READY, Problem, ProblemBody},
};
use crate::metrics::kind;

/// The process serves.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
    /// The service's version.
    version: &'static str,
}

/// Questions are accepted.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready`, or `degraded` if questions are accepted but not analysed at the moment.
    status: &'static str,
    /// Why it is degraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<FieldError>,
}

/// Whether the process serves
#[utoipa::path(
    get, path = "/health", tag = "service",
    responses((status = 200, description = "It does", body = Health))
)]
pub(super) async fn live() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Whether questions are accepted
#[utoipa::path(
    get, path = "/health/ready", tag = "service",
    responses(
        (status = 200, description = "They are; `degraded` while Claude can't be called or the queue is paused", body = Readiness),
        (status = 503, description = "`not_ready`, with the reasons as `errors`", body = ProblemBody<'static>,
            content_type = "application/problem+json")
    )
)]
pub(super) async fn ready(State(api): State<Arc<Api>>) -> Response {
    let down = troubles(&api);
    if !down.is_empty() {
        return Problem::listing(NOT_READY, down).into_response();
    }
    let gate = api.limits.gate();
    let gate = gate.map(|closed| FieldError::new("claude", format!("{}: {}", closed.reason, closed.detail)));
    let paused = api.queue.paused();
    let paused = paused.map(|pause| FieldError::new("queue", format!("was paused by {} at {}", pause.by, pause.at)));
    let reasons: Vec<FieldError> = paused.into_iter().chain(gate).collect();
    Json(Readiness { status: if reasons.is_empty() { "ready" } else { "degraded" }, reasons }).into_response()
}

/// Why no question is accepted; empty while they are.
pub(super) fn troubles(api: &Api) -> Vec<FieldError> {
    let closing = api.queue.is_closing().then(|| FieldError::new("service", "is shutting down"));
    let store = api.queue.trouble().map(|trouble| FieldError::new("store", trouble));
    let disk = api.queue.shortage().map(|shortage| FieldError::new("disk", shortage.to_string()));
    closing.into_iter().chain(store).chain(disk).collect()
}

/// Metrics, in the OpenMetrics format
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses((status = 200, description = "All metrics", body = String,
        content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let counts = api.queue.counts();
    let gauge = |count| i64::try_from(count).unwrap_or(i64::MAX);
    for (status, count) in [
        ("queued", counts.queued),
        ("scheduled", counts.scheduled),
        ("running", counts.running),
        ("succeeded", counts.succeeded),
        ("failed", counts.failed),
        ("cancelled", counts.cancelled),
    ] {
        api.metrics.jobs.get_or_create(&kind(status)).set(gauge(count));
    }
    api.metrics.waiters.set(gauge(api.queue.waiters()));
    api.metrics.running_attempts.set(gauge(api.queue.running_attempts()));
    api.metrics.tasks.set(gauge(tokio::runtime::Handle::current().metrics().num_alive_tasks()));
    api.metrics.gate_closed.set(i64::from(api.limits.gate().is_some()));
    api.metrics.paused.set(i64::from(api.queue.paused().is_some()));
    api.metrics.store_available.set(i64::from(api.queue.trouble().is_none()));
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (StatusCode::OK, [(header::CONTENT_TYPE, format)], api.metrics.render()).into_response()
}
