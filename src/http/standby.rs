//! What a node answers while another node of the same database is active: it is alive, and not ready.

use std::cell::RefCell;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::time::Instant;

use super::{
    health,
    middleware::{X_REQUEST_ID, given_id, new_id},
    observe::Current,
    problem::{FieldError, NOT_READY, Problem, STANDBY},
};
use crate::metrics::Metrics;

/// `Retry-After` of a node that stands by, in seconds: a node takes over within a second.
const RETRY_AFTER: u64 = 1;

/// The routes of a node that stands by.
pub fn router(metrics: Metrics) -> Router {
    Router::new()
        .route("/health", get(async || health::alive()))
        .route("/health/ready", get(not_ready))
        .route("/metrics", get(async move || health::rendered(&metrics)))
        .fallback(elsewhere)
        .layer(from_fn(identify))
}

async fn not_ready() -> Problem {
    let reason = FieldError::new("standby", "another node is active; this one takes over when that one ends");
    Problem::listing(NOT_READY, vec![reason]).retry_after(RETRY_AFTER)
}

async fn elsewhere() -> Problem {
    Problem::new(STANDBY, "this node stands by; another node answers").retry_after(RETRY_AFTER)
}

/// Gives the request its id.
async fn identify(request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(new_id);
    let current = Current { id: id.clone(), started: Instant::now(), traceparent: None, headers: RefCell::default() };
    let mut response = current.scope(next.run(request)).await.into_response();
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}
