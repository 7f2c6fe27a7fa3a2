//! One of the account's limits per minute: a `governor` bucket that also takes what is known only afterwards.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::{Moments, Timestamp};

/// The share of a limit that is used: clocks and networks are not exact, and a refused call costs more than a later one.
const SHARE: f64 = 0.98;

type Limiter = RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>;

/// Time since a moment, by the clock that all waiting uses: it stands still in tests with paused time.
#[derive(Clone, Copy, Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A bucket, as the dispatcher tells other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct BucketMemo {
    /// The limit that an answer named, and when its call began.
    named: Option<(NonZeroU32, Timestamp)>,
    /// Units that were used and not reserved.
    debt: i64,
}

#[derive(Debug)]
pub(super) struct Bucket {
    /// The operator's.
    cap: Option<NonZeroU32>,
    /// In force until the upstream names its limit.
    start: NonZeroU32,
    /// The upstream's limit, and when the call began whose answer named it.
    named: Option<(NonZeroU32, Instant)>,
    burst: Duration,
    limiter: Limiter,
    clock: TokioClock,
    /// Units that were reserved and not used; below zero, used and not reserved.
    balance: i64,
}

impl Bucket {
    pub(super) fn new(cap: Option<NonZeroU32>, start: NonZeroU32, burst: Duration) -> Bucket {
        let clock = TokioClock(Instant::now());
        let limiter = limiter(cap.unwrap_or(start), burst, clock);
        Bucket { cap, start, named: None, burst, limiter, clock, balance: 0 }
    }

    pub(super) fn take(&mut self, units: u32) -> Result<(), Duration> {
        while self.balance < 0 {
            let debt = u32::try_from(-self.balance).unwrap_or(u32::MAX).min(self.capacity());
            self.draw(debt)?;
            self.balance += i64::from(debt);
        }
        let Ok(needed @ 1..) = u32::try_from(i64::from(units) - self.balance) else {
            self.balance -= i64::from(units);
            return Ok(());
        };
        // More than the bucket ever holds is owed.
        let now = needed.min(self.capacity());
        self.draw(now)?;
        self.balance = -i64::from(needed - now);
        Ok(())
    }

    pub(super) fn settle(&mut self, taken: u32, used: u32) {
        // Credit is bounded like the bucket: what was unused for long can't be used at once later.
        let most = i64::from(self.capacity());
        self.balance = (self.balance + i64::from(taken) - i64::from(used)).min(most);
    }

    pub(super) fn set(&mut self, cap: Option<NonZeroU32>) {
        self.cap = cap;
        self.apply();
    }

    /// Records the upstream's limit. A call that began later knows better, whichever was answered first.
    pub(super) fn learn(&mut self, per_minute: NonZeroU32, called_at: Instant) {
        if self.named.is_some_and(|(_, named_at)| named_at > called_at) {
            return;
        }
        let before = self.per_minute();
        self.named = Some((per_minute, called_at));
        if self.per_minute() != before {
            self.apply();
        }
    }

    pub(super) fn memo(&self, moments: &Moments) -> BucketMemo {
        let named = self.named.map(|(limit, at)| (limit, moments.timestamp(at)));
        BucketMemo { named, debt: -self.balance.min(0) }
    }

    pub(super) fn adopt(&mut self, BucketMemo { named, debt }: BucketMemo, moments: &Moments) {
        let before = self.per_minute();
        self.named = named.map(|(limit, at)| (limit, moments.instant(at)));
        if self.per_minute() != before {
            self.apply();
        }
        self.balance = -debt;
    }

    /// Leaves nothing in it.
    pub(super) fn drain(&mut self) {
        self.apply();
    }

    /// The operator's cap, or the upstream's limit if that is lower.
    pub(super) fn per_minute(&self) -> NonZeroU32 {
        match (self.cap, self.named) {
            (Some(cap), Some((named, _))) => cap.min(named),
            (None, Some((named, _))) => named,
            (cap, None) => cap.unwrap_or(self.start),
        }
    }

    fn capacity(&self) -> u32 {
        capacity(self.per_minute(), self.burst).get()
    }

    fn draw(&self, units: u32) -> Result<(), Duration> {
        let Some(cells) = NonZeroU32::new(units) else { return Ok(()) };
        match self.limiter.check_n(cells) {
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(self.clock.now())),
        }
    }

    fn apply(&mut self) {
        self.limiter = limiter(self.per_minute(), self.burst, self.clock);
        // A new bucket is full, but it is not known what the account has left.
        let _ = self.limiter.check_n(capacity(self.per_minute(), self.burst));
        self.balance = self.balance.min(0);
    }
}

fn capacity(per_minute: NonZeroU32, burst: Duration) -> NonZeroU32 {
    let units = f64::from(per_minute.get()) * burst.as_secs_f64() / 60.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "of a u32, at most")]
    NonZeroU32::new(units.min(f64::from(u32::MAX)) as u32).unwrap_or(NonZeroU32::MIN)
}

fn limiter(per_minute: NonZeroU32, burst: Duration, clock: TokioClock) -> Limiter {
    let period = Duration::from_secs_f64(60.0 / (f64::from(per_minute.get()) * SHARE));
    // The quota takes no period of zero; and more than a billion units a second are no limit.
    let quota =
        Quota::with_period(period.max(Duration::from_nanos(1))).unwrap_or_else(|| Quota::per_minute(per_minute));
    RateLimiter::direct_with_clock(quota.allow_burst(capacity(per_minute, burst)), clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_minute: u32) -> Bucket {
        Bucket::new(NonZeroU32::new(per_minute), NonZeroU32::MIN, Duration::from_secs(1))
    }

    /// How many single units can be taken right now.
    fn left(bucket: &mut Bucket) -> usize {
        (0..10_000).take_while(|_| bucket.take(1).is_ok()).count()
    }

    #[test]
    fn a_burst_is_what_refills_in_its_time_and_then_a_wait_is_returned() {
        let mut bucket = bucket(60);
        assert_eq!(left(&mut bucket), 1);
        let wait = bucket.take(1).unwrap_err();
        assert!(wait > Duration::from_millis(900) && wait <= Duration::from_millis(1_030), "{wait:?}");
    }

    #[test]
    fn what_was_not_used_can_be_taken_again_and_what_was_used_besides_is_owed() {
        let mut bucket = bucket(60 * 100);
        bucket.take(100).unwrap();
        bucket.settle(100, 40);
        assert!((60..70).contains(&left(&mut bucket)));
        bucket.settle(0, 300);
        let wait = bucket.take(1).unwrap_err();
        assert!(
            wait > Duration::from_millis(900),
            "{wait:?} for 301 units at 98 a second, of which 100 at most at once"
        );
    }

    #[test]
    fn what_is_more_than_the_bucket_holds_is_lent_and_paid_back_before_the_next() {
        let mut bucket = bucket(60 * 1_000);
        bucket.take(1_200).unwrap();
        assert!(bucket.take(1).is_err() && bucket.balance == -200, "no deeper into debt");
        let start = std::time::Instant::now();
        while bucket.take(1).is_err() {
            std::thread::yield_now();
        }
        assert!(start.elapsed() > Duration::from_millis(190), "{:?}", start.elapsed());
    }

    #[test]
    fn the_lower_of_the_cap_and_the_upstreams_limit_counts() {
        let mut bucket = bucket(60 * 100);
        let limit = |per_minute| NonZeroU32::new(per_minute).unwrap();
        let now = Instant::now();
        bucket.learn(limit(600), now);
        bucket.learn(limit(1_200), now - Duration::from_secs(1));
        assert_eq!((bucket.per_minute().get(), bucket.cap, left(&mut bucket)), (600, Some(limit(6_000)), 0));
        bucket.set(Some(limit(120)));
        assert_eq!((bucket.per_minute().get(), left(&mut bucket)), (120, 0), "it fills from nothing");
        bucket.learn(limit(60_000), now);
        assert_eq!(bucket.per_minute().get(), 120);
    }
    #[test]
    fn without_a_cap_the_upstreams_limit_counts_and_until_it_is_known_the_start() {
        let limit = |per_minute| NonZeroU32::new(per_minute).unwrap();
        let mut bucket = Bucket::new(None, limit(1_000), Duration::from_secs(1));
        assert_eq!(bucket.per_minute(), limit(1_000));
        bucket.learn(limit(5_000), Instant::now());
        assert_eq!(bucket.per_minute(), limit(5_000), "also where it is more");
        bucket.set(Some(limit(4_000)));
        assert_eq!(bucket.per_minute(), limit(4_000));
    }
}
