//! The request that is being handled: its id, its start, and headers for its response. And the limit on log lines about
//! refused requests.

use std::{
    cell::RefCell,
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::http::{HeaderName, HeaderValue};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::time::Instant;

/// Log lines a second about requests that were refused (4xx). Anyone can cause them, as many as they like.
const REFUSALS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not zero");

tokio::task_local! {
    static CURRENT: Current;
}

pub(super) struct Current {
    pub(super) id: HeaderValue,
    pub(super) started: Instant,
    pub(super) traceparent: Option<String>,
    pub(super) headers: RefCell<Vec<(HeaderName, HeaderValue)>>,
}

impl Current {
    pub(super) async fn scope<T>(self, handle: impl Future<Output = T>) -> T {
        CURRENT.scope(self, handle).await
    }
}

/// The id of the current request; empty outside of a request.
pub(super) fn request_id() -> String {
    CURRENT.try_with(|current| current.id.to_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

pub(super) fn traceparent() -> Option<String> {
    CURRENT.try_with(|current| current.traceparent.clone()).ok().flatten()
}

pub(super) fn started() -> Instant {
    CURRENT.try_with(|current| current.started).unwrap_or_else(|_| Instant::now())
}

/// Adds a header to the response of the current request, also if it is an error.
pub(super) fn add_header(name: HeaderName, value: HeaderValue) {
    let _ = CURRENT.try_with(|current| current.headers.borrow_mut().push((name, value)));
}

pub(super) fn take_headers() -> Vec<(HeaderName, HeaderValue)> {
    CURRENT.try_with(|current| current.headers.take()).unwrap_or_default()
}

pub struct RefusalLog {
    quota: DefaultDirectRateLimiter,
    left_out: AtomicU64,
}

impl Default for RefusalLog {
    fn default() -> RefusalLog {
        RefusalLog { quota: RateLimiter::direct(Quota::per_second(REFUSALS_PER_SECOND)), left_out: AtomicU64::new(0) }
    }
}

impl RefusalLog {
    /// How many lines were left out before this one; `None` if this one is left out too.
    pub(super) fn take(&self) -> Option<u64> {
        if self.quota.check().is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_about_refusals_are_limited_and_those_left_out_are_counted() {
        let log = RefusalLog::default();
        let lines = (0..1_000).filter_map(|_| log.take()).count();
        assert!((20..100).contains(&lines), "{lines}");
        assert_eq!(log.left_out.load(Ordering::Relaxed), 1_000 - lines as u64);
    }
}
