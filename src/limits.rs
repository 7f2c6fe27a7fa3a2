//! How fast Claude may be called: the account's rate, by `governor`, and the gate that closes for everyone at once.
//!
//! A permit is good for one call. A job waits for one in the queue, not in a worker: a worker asks for the permit
//! first and claims afterwards. The gate closes when the upstream says that every call would fail alike: a rate limit
//! until its Retry-After, a refused key for [`HOLD`].

use std::{
    num::NonZeroU32,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock as _, clock::DefaultClock};
use tokio::{sync::Notify, time::Instant};

/// How long the gate stays closed where only a person can mend the cause (a refused key, a retired model, billing):
/// then one job probes, and the gate closes again if nothing has changed.
pub const HOLD: Duration = Duration::from_secs(30);

/// How long the gate stays closed at a rate limit that names no time.
pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// The part of a closing that is added at random, so that callers of one account do not all come back at once.
const JITTER: f64 = 0.1;

/// The limits on calls. Shared by all workers.
#[derive(Debug)]
pub struct Limits {
    requests: DefaultDirectRateLimiter,
    clock: DefaultClock,
    /// The requests a minute of the quota.
    per_minute: NonZeroU32,
    /// How many wait for the rate to let them through.
    waiting: AtomicUsize,
    gate: Mutex<Option<Closed>>,
    gate_changed: Notify,
}

/// One that waits for the rate; no more when dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Waiting<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A closed gate.
#[derive(Clone, Debug)]
pub struct Closed {
    /// When it opens by itself.
    pub until: Instant,
    /// A stable snake_case word: what for.
    pub reason: &'static str,
    /// What the upstream said.
    pub detail: String,
}

impl Limits {
    /// At most `requests_per_minute`, evenly: the burst is one second's worth, since a limit per minute may be enforced
    /// per second.
    pub fn new(requests_per_minute: NonZeroU32) -> Limits {
        let burst = NonZeroU32::new(requests_per_minute.get().div_ceil(60)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(requests_per_minute).allow_burst(burst);
        Limits {
            requests: RateLimiter::direct(quota),
            clock: DefaultClock::default(),
            per_minute: requests_per_minute,
            waiting: AtomicUsize::new(0),
            gate: Mutex::default(),
            gate_changed: Notify::new(),
        }
    }

    /// Waits until one call may be made, and counts it.
    pub async fn permit(&self) {
        loop {
            self.gate_open().await;
            match self.requests.check() {
                Ok(()) => return,
                Err(not_until) => {
                    let _waiting = Waiting::new(&self.waiting);
                    tokio::time::sleep(not_until.wait_time_from(self.clock.now())).await;
                }
            }
        }
    }

    /// Counts one call, if it may be made at this moment.
    pub fn try_permit(&self) -> bool {
        self.gate().is_none() && self.requests.check().is_ok()
    }

    /// Calls allowed a second, over time.
    pub fn calls_per_second(&self) -> f64 {
        f64::from(self.per_minute.get()) / 60.0
    }

    /// True while somebody who wants to call waits for the rate.
    pub fn is_exhausted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Closes the gate for `duration` and some jitter; never opens one earlier that is closed for longer.
    pub fn close_gate(&self, duration: Duration, reason: &'static str, detail: &str) {
        let until = Instant::now() + duration.mul_f64(1.0 + JITTER * rand::random::<f64>());
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.as_ref().is_none_or(|closed| closed.until < until) {
            *gate = Some(Closed { until, reason, detail: detail.to_owned() });
            drop(gate);
            self.gate_changed.notify_waiters();
        }
    }

    /// The gate, if it is closed.
    pub fn gate(&self) -> Option<Closed> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.as_ref().is_some_and(|closed| closed.until <= Instant::now()) {
            *gate = None;
        }
        gate.clone()
    }

    async fn gate_open(&self) {
        while let Some(closed) = self.gate() {
            tokio::select! {
                () = tokio::time::sleep_until(closed.until) => {}
                () = self.gate_changed.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_minute: u32) -> Limits {
        Limits::new(NonZeroU32::new(per_minute).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_lets_nobody_through_before_its_time() {
        let limits = limits(60_000);
        limits.close_gate(Duration::from_secs(20), "rate_limited", "slow down");
        assert!(!limits.try_permit());
        let start = Instant::now();
        limits.permit().await;
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs(20) && waited <= Duration::from_secs(23), "{waited:?}");
        assert!(limits.gate().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_closing_does_not_open_the_gate_earlier() {
        let limits = limits(60_000);
        limits.close_gate(Duration::from_secs(60), "authentication_failed", "bad key");
        limits.close_gate(Duration::from_secs(1), "rate_limited", "slow down");
        assert_eq!(limits.gate().unwrap().reason, "authentication_failed");
    }

    #[test]
    fn the_rate_is_spread_evenly_with_a_burst_of_one_second() {
        let limits = limits(120);
        let passed = (0..100).filter(|_| limits.requests.check().is_ok()).count();
        assert!((2..=3).contains(&passed), "{passed} calls at once at 120 a minute");
    }
}
