//! The middleware around all routes: request id, time limit, panics, access log, metrics, memory for bodies.
//!
//! Not by tower-http: its request id takes any value that a client sends, its time limit answers without a problem, and its
//! layer for panics boxes each body.

use std::{any::Any, cell::RefCell, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info};
use uuid::Uuid;

use super::{
    api::Api,
    extract,
    memory::{self, MonitoringOnly},
    observe::{self, Current},
    problem::{INTERNAL, Problem, TIMEOUT},
};
use crate::{
    metrics::HttpLabels,
    process::panic_text,
    telemetry::{Span, TRACEPARENT},
};

/// Time limit of a request: clients and proxies commonly give up after 30 s.
const ANSWER_LIMIT: Duration = Duration::from_millis(29_500);

const MAX_LOGGED_PATH: usize = 200;

const TIMED_OUT: &str =
    "no answer within 29.5 s; the request may still have taken effect, so check before you repeat it";

/// Routes that monitoring calls every few seconds: their log lines would bury all others.
const PROBES: [&str; 3] = ["/health", "/health/ready", "/metrics"];

/// Longest request id accepted from a client: a longer one would bloat every log line.
const MAX_REQUEST_ID: usize = 128;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers every request within [`ANSWER_LIMIT`] and writes a log line for it, also after a panic.
pub(super) async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = given_id(request.headers()).unwrap_or_else(new_id);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let name = || format!("{} {}", bounded(&method), route.as_ref().map_or("", MatchedPath::as_str));
    let parent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let span = Span::server(name, parent);

    let route = route.as_ref().map_or("none", MatchedPath::as_str);

    let answer = async {
        match timeout_at(started + ANSWER_LIMIT, AssertUnwindSafe(next.run(request)).catch_unwind()).await {
            Ok(Ok(response)) => response,
            Ok(Err(panic)) => panicked(&*panic),
            Err(_) => Problem::new(TIMEOUT, TIMED_OUT).into_response(),
        }
    };
    let current = Current { id: id.clone(), started, traceparent: span.traceparent(), headers: RefCell::default() };
    let answer = async {
        let mut response = answer.await;
        response.headers_mut().extend(observe::take_headers());
        let elapsed = started.elapsed();
        let is_refused = response.status().is_client_error();
        if let Some(left_out) = if is_refused { api.refusals.take() } else { Some(0) } {
            macro_rules! log {
                ($level:ident) => {
                    $level!(
                        http.method = %method,
                        http.route = route,
                        http.path = cut(uri.path()),
                        http.status = response.status().as_u16(),
                        duration_ms = elapsed.as_secs_f64() * 1e3,
                        request.id = text(&id),
                        left_out = (left_out > 0).then_some(left_out),
                        "request answered"
                    )
                };
            }
            if PROBES.contains(&route) {
                log!(debug);
            } else {
                log!(info);
            }
        }
        (response, elapsed)
    };
    let (mut response, elapsed) = span.scope(current.scope(answer)).await;

    span.note("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.fail(response.status().as_str());
    }
    let labels =
        HttpLabels { method: bounded(&method).to_owned(), route: route.to_owned(), status: response.status().as_u16() };
    api.metrics.http_requests.get_or_create(&labels).inc();
    api.metrics.http_seconds.observe(elapsed.as_secs_f64());
    harden(response.headers_mut());
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// Adds security headers for browsers. Headers that a handler has set stay.
fn harden(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Responses are private to a caller.
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// The client's request id, if it has 1 to [`MAX_REQUEST_ID`] visible ASCII characters.
pub(super) fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(X_REQUEST_ID)?;
    let sane = (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    sane.then(|| id.clone())
}

pub(super) fn new_id() -> HeaderValue {
    HeaderValue::try_from(Uuid::now_v7().to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    error!(request.id = observe::request_id(), panic = panic_text(panic), "a handler panicked");
    Problem::new(INTERNAL, "internal error; search the log for this request_id").into_response()
}

fn cut(path: &str) -> &str {
    &path[..path.floor_char_boundary(MAX_LOGGED_PATH)]
}

/// The method as a metric label. Unknown methods share one label, so that clients can't create time series.
fn bounded(method: &Method) -> &str {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::OPTIONS => {
            method.as_str()
        }
        _ => "other",
    }
}

/// Counts the bodies of requests and answers, and keeps places for monitoring.
pub(super) async fn bound(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let is_monitoring_only = request.extensions().get::<MonitoringOnly>().is_some();
    if is_monitoring_only && !PROBES.contains(&request.uri().path()) {
        return last(memory::busy("has as many connections as it can hold; only health and metrics are answered"));
    }
    let address = extract::address_of(request.extensions(), request.headers(), &api);
    let answer = memory::counted(&api.memory, address, request, next).await;
    if is_monitoring_only { last(answer) } else { answer }
}

fn last(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(value: &str) -> Option<HeaderValue> {
        given_id(&HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).unwrap())]))
    }

    #[test]
    fn a_valid_request_id_is_used_and_any_other_replaced() {
        assert_eq!(given("order-4711/a").unwrap(), "order-4711/a");
        assert!(given(&"x".repeat(MAX_REQUEST_ID)).is_some());
        for bad in ["", "two words", "数", &"x".repeat(MAX_REQUEST_ID + 1)] {
            assert!(given(bad).is_none(), "{bad:?}");
        }
        assert!(Uuid::try_parse(text(&new_id())).is_ok_and(|id| id.get_version_num() == 7));
    }

    #[test]
    fn a_long_path_is_cut_between_two_characters() {
        assert_eq!(cut(&format!("/{}", "ü".repeat(500))).len(), 199);
    }

    #[test]
    fn unknown_methods_share_one_time_series() {
        assert_eq!(bounded(&Method::from_bytes(b"BREW").unwrap()), "other");
        assert_eq!(bounded(&Method::POST), "POST");
    }
}
