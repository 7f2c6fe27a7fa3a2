//! The simulated account: its rate limits as token buckets with continuous refill, and their headers.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::fault::ErrorAnswer;

/// What a bucket must hold for a request to pass: one request, or any tokens at all.
const NEEDED: f64 = 1.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountLimits {
    pub requests: u32,
    pub input_tokens: u32,
    pub output_tokens: u32,
    /// The buckets hold what refills in this time: the API may enforce 60 requests per minute as one per second.
    pub burst: Duration,
}

impl AccountLimits {
    pub const UNLIMITED: AccountLimits = AccountLimits {
        requests: 1_000_000_000,
        input_tokens: 1_000_000_000,
        output_tokens: 1_000_000_000,
        burst: Duration::from_secs(60),
    };

    /// The limits of Anthropic's first paid tier, a minute's worth at once.
    pub const START: AccountLimits = AccountLimits {
        requests: 1_000,
        input_tokens: 2_000_000,
        output_tokens: 400_000,
        burst: Duration::from_secs(60),
    };
}

pub(super) struct Account {
    enforced: bool,
    buckets: [Bucket; 3],
}

struct Bucket {
    name: &'static str,
    limit: u32,
    capacity: f64,
    level: f64,
    at: Instant,
}

impl Account {
    pub(super) fn new(limits: Option<AccountLimits>, now: Instant) -> Account {
        let enforced = limits.is_some();
        let limits = limits.unwrap_or(AccountLimits::UNLIMITED);
        let bucket = |name, limit: u32| {
            let capacity = (f64::from(limit) * limits.burst.as_secs_f64() / 60.0).max(1.0);
            Bucket { name, limit, capacity, level: capacity, at: now }
        };
        Account {
            enforced,
            buckets: [
                bucket("requests", limits.requests),
                bucket("input-tokens", limits.input_tokens),
                bucket("output-tokens", limits.output_tokens),
            ],
        }
    }

    /// Changes the limits; a bucket holds no more than before.
    pub(super) fn set(&mut self, limits: Option<AccountLimits>, now: Instant) {
        self.buckets.iter_mut().for_each(|bucket| bucket.refill(now));
        let mut changed = Account::new(limits, now);
        for (bucket, before) in changed.buckets.iter_mut().zip(&self.buckets) {
            bucket.level = bucket.level.min(before.level);
        }
        *self = changed;
    }

    /// All or nothing. A bucket may go below zero: the tokens of an answer are known only afterwards.
    pub(super) fn take(&mut self, input_tokens: u64, output_tokens: u64, now: Instant) -> Result<(), ErrorAnswer> {
        if !self.enforced {
            return Ok(());
        }
        self.buckets.iter_mut().for_each(|bucket| bucket.refill(now));
        if let Some(empty) = self.buckets.iter().find(|bucket| bucket.level < NEEDED) {
            let limit = format!("{} {} per minute", empty.limit, empty.name.replace('-', " "));
            let message = format!("This request would exceed your organization's rate limit of {limit}");
            let seconds = empty.time_to(NEEDED).as_secs_f64().ceil().max(1.0);
            return Err(ErrorAnswer::status(429).message(message).header("retry-after", seconds.to_string()));
        }
        for (bucket, taken) in self.buckets.iter_mut().zip([1, input_tokens, output_tokens]) {
            bucket.level -= taken as f64;
        }
        Ok(())
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (String, String)> {
        let now = SystemTime::now();
        self.buckets.iter().flat_map(move |bucket| {
            let remaining = match bucket.name {
                "requests" => bucket.level.max(0.0).floor(),
                _ => (bucket.level.max(0.0) / 1_000.0).round() * 1_000.0,
            };
            let reset = jiff::Timestamp::try_from(now + bucket.time_to(bucket.capacity)).unwrap_or_default();
            let name = |what| format!("anthropic-ratelimit-{}-{what}", bucket.name);
            [
                (name("limit"), bucket.limit.to_string()),
                (name("remaining"), remaining.to_string()),
                (name("reset"), reset.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            ]
        })
    }
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + elapsed * f64::from(self.limit) / 60.0).min(self.capacity);
        self.at = now;
    }

    fn time_to(&self, level: f64) -> Duration {
        let missing = (level - self.level).max(0.0);
        Duration::try_from_secs_f64(missing * 60.0 / f64::from(self.limit)).unwrap_or(Duration::MAX)
    }
}
