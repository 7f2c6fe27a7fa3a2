//! `/health`, `/health/ready`, `/metrics`: for monitoring.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    api::{Api, Note},
    problem::{FieldError, NOT_READY, Problem},
};
use crate::{
    clock::Timestamp,
    job::FailureCode,
    ledger::dollars,
    limits::budget::Status,
    metrics::{Metrics, kind},
    store::FEED_LIMIT,
};

/// As the metric `feed_live` says.
const FEED_LIVE: Duration = Duration::from_secs(2);

/// The process answers requests.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    status: &'static str,
    /// The service's version.
    version: &'static str,
}

/// The service accepts jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready`, or `degraded` if jobs are accepted but not run at the moment.
    status: &'static str,
    /// Why the service is degraded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Reason>,
    /// What an operator should look at. The service works all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<Note>,
}

/// Why accepted jobs do not run.
#[derive(Serialize, ToSchema)]
struct Reason {
    /// The part of the service: `queue`, `dispatcher`, `claude` or `budget`.
    field: &'static str,
    /// Stable code, for programs. `queue`: `paused`. `dispatcher`: `no_dispatcher`. `claude`: `authentication_failed`, `billing_failed`,
    /// `permission_denied`, `model_not_found`, `proxy_refused`, `invalid_request`, `malformed_response`, `rate_limited`,
    /// `connect_failed`, `connection_lost`. `budget`: `budget_reached`.
    code: &'static str,
    /// The reason, for people.
    message: String,
    /// When it ends by itself. Absent if a person has to act first.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// Liveness
///
/// `200` while the process works. Otherwise restart the process.
#[utoipa::path(
    get, path = "/health", operation_id = "get_health", tag = "service",
    responses(
        (status = 200, description = "The process is alive", body = Health),
        (status = 503, description = "`not_ready`: the process stops because the job store can't be recovered")
    )
)]
pub(super) async fn live(State(api): State<Arc<Api>>) -> Response {
    if api.operations.store_lost().is_cancelled() {
        let lost = FieldError::new("store", "can't be recovered by this process; it is ending");
        return Problem::listing(NOT_READY, vec![lost]).into_response();
    }
    alive().into_response()
}

pub(super) fn alive() -> Json<impl Serialize> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Readiness
///
/// `200` while the service accepts jobs.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "get_readiness", tag = "service",
    responses(
        (status = 200, description = "Jobs are accepted. `degraded` while Claude can't be called, no node hands out calls, the daily \
            budget is used up or the queue is paused", body = Readiness),
        (status = 503, description = "`not_ready`; `errors` has the reasons, each with the part of the service as its `field`: `service` \
            (is shutting down), `store`, `disk`, `prompts` or `feed` (changes by other nodes come late)")
    )
)]
pub(super) async fn ready(State(api): State<Arc<Api>>) -> Response {
    let down = troubles(&api);
    if !down.is_empty() {
        return Problem::listing(NOT_READY, down).into_response();
    }
    let gate = api.limits.gate(None).map(|closed| {
        let until = closed.opens_in(Instant::now()).map(|opens_in| api.queue.now().plus(opens_in));
        Reason { field: "claude", code: closed.code.into(), message: closed.detail, until }
    });
    let unreachable = api.limits.unreachable().map(|calls| Reason {
        field: "claude",
        code: calls.code.into(),
        message: format!("{} calls in a row found no connection: {}", calls.failures, calls.detail),
        until: None,
    });
    let budget = api.limits.budget().filter(|budget| budget.is_reached).map(|budget| Reason {
        field: "budget",
        code: FailureCode::BudgetReached.into(),
        message: format!(
            "the daily budget is used up ({budget}; the rest is too small for a call); the queue continues at {}",
            budget.day_ends_at
        ),
        until: Some(budget.day_ends_at),
    });
    let paused = api.operations.paused().map(|pause| Reason {
        field: "queue",
        code: "paused",
        message: format!("was paused by an operator at {}", pause.at),
        until: None,
    });
    let missing = (api.dispatcher_missing_since)().map(|since| Reason {
        field: "dispatcher",
        code: "no_dispatcher",
        message: format!(
            "no node has handed out calls to Claude since {since}. A node takes over by itself within seconds, if it can"
        ),
        until: None,
    });
    let reasons: Vec<Reason> = paused.into_iter().chain(missing).chain(gate).chain(unreachable).chain(budget).collect();
    let status = if reasons.is_empty() { "ready" } else { "degraded" };
    Json(Readiness { status, reasons, notes: (api.notes)() }).into_response()
}

/// Why the service accepts no jobs; empty while it does.
pub(super) fn troubles(api: &Api) -> Vec<FieldError> {
    let closing = api.stopping.is_cancelled().then(|| FieldError::new("service", "is shutting down"));
    let store = api.operations.trouble().map(|trouble| FieldError::new("store", trouble));
    let disk = api.operations.shortage().map(|shortage| FieldError::new("disk", shortage.to_string()));
    let prompts = api.prompts.trouble().map(|trouble| {
        let message = format!(
            "can't use the prompts of the other nodes: {trouble}. Run the same version of the service on all nodes, or \
             reload the prompts on this one"
        );
        FieldError::new("prompts", message)
    });
    let feed = api.store.is_feed_late().then(|| {
        let message = format!(
            "this node hears of changes by other nodes more than {} s late. It catches up by itself; if it does not, restart it",
            FEED_LIMIT.as_secs()
        );
        FieldError::new("feed", message)
    });
    closing.into_iter().chain(store).chain(disk).chain(prompts).chain(feed).collect()
}

/// Metrics in the OpenMetrics format
///
/// For Prometheus and other systems that read OpenMetrics.
#[utoipa::path(
    get, path = "/metrics", operation_id = "get_metrics", tag = "service",
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
    api.metrics.waiters.set(gauge(api.operations.waiters()));
    api.metrics.running_attempts.set(gauge(api.operations.own_attempts()));
    api.metrics.tasks.set(gauge(tokio::runtime::Handle::current().metrics().num_alive_tasks()));
    api.metrics.oldest_queued_age_seconds.set(api.operations.oldest_queued_age().as_secs_f64());
    api.metrics.gate_closed.set(i64::from(api.limits.gate(None).is_some()));
    api.metrics.claude_unreachable.set(i64::from(api.limits.unreachable().is_some()));
    let per_minute = api.limits.per_minute(None);
    for (name, limit) in [
        ("requests", per_minute.requests),
        ("input_tokens", per_minute.input_tokens),
        ("output_tokens", per_minute.output_tokens),
    ] {
        api.metrics.limits_per_minute.get_or_create(&kind(name)).set(i64::from(limit.get()));
    }
    api.metrics.calls_at_once.set(gauge(api.limits.calls_at_once(None)));
    spending(&api);
    api.metrics.paused.set(i64::from(api.operations.paused().is_some()));
    api.metrics.queue_used.set(api.operations.used());
    api.metrics.ready.set(i64::from(troubles(&api).is_empty()));
    api.metrics.store_available.set(i64::from(api.operations.trouble().is_none()));
    api.metrics.feed_live.set(i64::from(api.store.is_watch_live(FEED_LIVE)));
    rendered(&api.metrics)
}

pub(super) fn rendered(metrics: &Metrics) -> Response {
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (StatusCode::OK, [(header::CONTENT_TYPE, format)], metrics.render()).into_response()
}

/// Updates the metrics of tokens, cost, budget and blocks.
fn spending(api: &Api) {
    let spent = api.operations.spent_today();
    let metrics = &api.metrics;
    let at_risk = spent.at_risk.input_tokens.saturating_add(spent.at_risk.output_tokens);
    for (name, tokens) in [
        ("input", spent.tokens.input_tokens),
        ("output", spent.tokens.output_tokens),
        ("cache_write", spent.tokens.cache_creation_input_tokens),
        ("cache_read", spent.tokens.cache_read_input_tokens),
        ("at_risk", at_risk),
    ] {
        metrics.tokens_today.get_or_create(&kind(name)).set(i64::try_from(tokens).unwrap_or(i64::MAX));
    }
    for (name, nanodollars) in [("billed", spent.nanodollars), ("at_risk", spent.at_risk.nanodollars)] {
        metrics.cost_today.get_or_create(&kind(name)).set(dollars(nanodollars));
    }
    let budget = api.limits.budget();
    let used = budget.iter().flat_map(Status::lines).map(|line| line.used()).fold(0.0, f64::max);
    metrics.budget_used.set(used);
    metrics.budget_warning.set(i64::from(budget.is_some_and(|budget| budget.is_nearly_used())));
    let held = api.limits.gate(None).filter(|closed| closed.opens_at.is_none()).map(|closed| closed.code);
    for code in [
        FailureCode::AuthenticationFailed,
        FailureCode::BillingFailed,
        FailureCode::PermissionDenied,
        FailureCode::ModelNotFound,
        FailureCode::ProxyRefused,
        FailureCode::InvalidRequest,
        FailureCode::MalformedResponse,
        FailureCode::BudgetReached,
    ] {
        let is_reached = code == FailureCode::BudgetReached && budget.is_some_and(|budget| budget.is_reached);
        let is_held = held == Some(code) || is_reached;
        metrics.held.get_or_create(&kind(code.into())).set(i64::from(is_held));
    }
}
