//! Submissions a minute of each caller: a bucket of a minute's quota that refills evenly.
//!
//! Nodes that share a database can share the count too ([`SharedRates`]). Then a node asks the shared count first, and records
//! the answer in its own. While the shared count can't be asked, each node continues with its own.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::refused::Refused;
use crate::job::caller::{self, Caller, Kind};

/// Callers whose quota is full again are forgotten above this number. Each takes about 50 bytes.
const MAX_REMEMBERED: usize = 10_000;

pub const MINUTE: Duration = Duration::from_mins(1);

/// Names the counts of submissions among the shared ones.
const SUBMITS: &str = "submits";

/// Counts that nodes share: each is a bucket of a minute's quota that refills evenly.
#[async_trait]
pub trait SharedRates: Send + Sync {
    /// Takes `count` from the bucket of `who` if it has as many; a negative `count` puts them back. `what` names the kind of
    /// bucket. `None` if the count can't be asked now: then it may have been taken all the same.
    async fn take(&self, what: &str, who: &[u8], count: i64, per_minute: NonZeroU32) -> Option<Taken>;
}

/// The answer of a shared count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub is_granted: bool,
    /// When the bucket is full again.
    pub full_in: Duration,
}

impl Taken {
    /// After which time a refused `count` would be granted.
    pub fn retry_after(&self, count: u32, per_minute: NonZeroU32) -> Duration {
        (self.full_in + price(count, per_minute)).saturating_sub(MINUTE)
    }
}

pub(super) struct Rates {
    per_minute: Option<NonZeroU32>,
    shared: Option<Arc<dyn SharedRates>>,
    callers: Mutex<Callers>,
}

#[derive(Debug, Default)]
struct Callers {
    /// When the caller's quota is full again.
    full_at: HashMap<Caller, Instant>,
    /// Above this number, those whose quota is full are forgotten.
    forget_above: usize,
}

/// What is left of a caller's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub per_minute: NonZeroU32,
    pub left: u32,
    /// When it is full again.
    pub full_in: Duration,
}

impl Rates {
    /// `None` is no limit.
    pub(super) fn new(per_minute: Option<NonZeroU32>, shared: Option<Arc<dyn SharedRates>>) -> Rates {
        Rates { per_minute, shared, callers: Mutex::default() }
    }

    /// Takes submissions from the quota that this node counts.
    pub(super) fn take(&self, who: Caller, submits: usize, now: Instant) -> Result<(), Refused> {
        let Some((limit, count)) = self.counted(who, submits)? else { return Ok(()) };
        let mut callers = self.callers.lock();
        let full_at = full_after(callers.full_at.get(&who), count, limit, now)?;
        callers.record(who, full_at, now);
        Ok(())
    }

    /// Takes submissions from the quota that the nodes share. `Ok(false)` if nodes share none, or if it can't be reached: then
    /// [`Rates::take`] counts. If this node knows that they will be refused, it does not ask.
    pub(super) async fn take_shared(&self, who: Caller, submits: usize) -> Result<bool, Refused> {
        let Some(shared) = &self.shared else { return Ok(false) };
        let Some((limit, count)) = self.counted(who, submits)? else { return Ok(false) };
        full_after(self.callers.lock().full_at.get(&who), count, limit, Instant::now())?;
        let Some(taken) = shared.take(SUBMITS, &bytes(who), i64::from(count), limit).await else { return Ok(false) };
        self.record(who, taken);
        if taken.is_granted {
            return Ok(true);
        }
        Err(Refused::TooFast { limit: limit.get(), retry_after: taken.retry_after(count, limit) })
    }

    /// Puts submissions back that [`Rates::take_shared`] took.
    pub(super) async fn put_back(&self, who: Caller, submits: usize) {
        let (Some(shared), Ok(Some((limit, count)))) = (&self.shared, self.counted(who, submits)) else { return };
        if let Some(taken) = shared.take(SUBMITS, &bytes(who), -i64::from(count), limit).await {
            self.record(who, taken);
        }
    }

    /// The limit and the count, if these submissions are limited.
    fn counted(&self, who: Caller, submits: usize) -> Result<Option<(NonZeroU32, u32)>, Refused> {
        let Some(limit) = self.per_minute.filter(|_| caller::kind(who) != Kind::Operator) else { return Ok(None) };
        let count = u32::try_from(submits).ok().filter(|count| *count <= limit.get());
        let count = count.ok_or(Refused::BatchTooLarge { jobs: submits, limit: limit.get() })?;
        Ok(Some((limit, count)))
    }

    fn record(&self, who: Caller, taken: Taken) {
        let now = Instant::now();
        // No error of another machine's clock lasts here for longer than a minute.
        self.callers.lock().record(who, now + taken.full_in.min(MINUTE), now);
    }

    /// What is left of a caller's quota, if there is a limit.
    pub(super) fn quota(&self, who: Caller, now: Instant) -> Option<Quota> {
        let per_minute = self.per_minute?;
        let full_at = self.callers.lock().full_at.get(&who).copied();
        let full_in = full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now));
        // Less than a microsecond is a rounding error.
        let nanos = full_in.saturating_sub(Duration::from_micros(1)).as_nanos();
        let missing = (nanos * u128::from(per_minute.get())).div_ceil(MINUTE.as_nanos());
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        Some(Quota { per_minute, left: per_minute.get().saturating_sub(missing), full_in })
    }
}

impl Callers {
    fn record(&mut self, who: Caller, full_at: Instant, now: Instant) {
        if self.full_at.len() > self.forget_above.max(MAX_REMEMBERED) {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.forget_above = 2 * self.full_at.len();
        }
        self.full_at.insert(who, full_at);
    }
}

/// When a quota is full again from which `count` more are taken.
fn full_after(full_at: Option<&Instant>, count: u32, limit: NonZeroU32, now: Instant) -> Result<Instant, Refused> {
    let full_at = full_at.map_or(now, |full_at| (*full_at).max(now)) + price(count, limit);
    let full_in = full_at - now;
    if full_in > MINUTE + Duration::from_micros(1) {
        return Err(Refused::TooFast { limit: limit.get(), retry_after: full_in - MINUTE });
    }
    Ok(full_at)
}

/// How long a bucket takes to refill by `count`.
fn price(count: u32, limit: NonZeroU32) -> Duration {
    MINUTE.mul_f64(f64::from(count) / f64::from(limit.get()))
}

fn bytes(who: Caller) -> [u8; 8] {
    who.map_or(0, NonZeroU64::get).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn unnamed(n: u8) -> Caller {
        caller::unnamed([192, 0, 2, n].into())
    }

    #[test]
    fn each_caller_has_a_quota_of_its_own_that_refills_evenly() {
        let rates = Rates::new(NonZeroU32::new(3), None);
        let (a, b, now) = (caller::named("a"), caller::named("b"), Instant::now());
        let left = |who, now| rates.quota(who, now).unwrap().left;
        assert_eq!(left(a, now), 3);
        assert!((0..3).all(|_| rates.take(a, 1, now).is_ok()));
        assert_eq!(left(a, now), 0);
        let refused = rates.take(a, 1, now).unwrap_err();
        let Refused::TooFast { limit: 3, retry_after } = refused else { panic!("{refused:?}") };
        assert_eq!(retry_after.as_secs_f64().round(), 20.0);
        assert!(rates.take(b, 3, now).is_ok(), "another caller has its own quota");
        assert_eq!(rates.take(a, 4, now), Err(Refused::BatchTooLarge { jobs: 4, limit: 3 }));
        assert!(rates.take(unnamed(1), 3, now).is_ok() && rates.take(unnamed(1), 1, now).is_err());
        assert!(rates.take(unnamed(2), 1, now).is_ok(), "of another address");
        assert!(rates.take(a, 1, now + retry_after).is_ok());
        assert_eq!(left(a, now + 2 * MINUTE), 3);
        assert!((0..100).all(|_| Rates::new(None, None).take(a, 1_000, now).is_ok()));
    }

    #[test]
    fn callers_with_a_full_quota_are_forgotten() {
        let rates = Rates::new(NonZeroU32::new(1_000), None);
        let start = Instant::now();
        for n in 0..2 * MAX_REMEMBERED {
            let now = start + Duration::from_secs(n as u64);
            rates.take(caller::named(&n.to_string()), 1, now).unwrap();
        }
        assert!(rates.callers.lock().full_at.len() <= MAX_REMEMBERED + 1);
    }

    /// Answers in turn, and records what it was asked.
    #[derive(Default)]
    struct Answers(Mutex<(VecDeque<Option<Taken>>, Vec<i64>)>);

    #[async_trait]
    impl SharedRates for Answers {
        async fn take(&self, _: &str, _: &[u8], count: i64, _: NonZeroU32) -> Option<Taken> {
            let (answers, asked) = &mut *self.0.lock();
            asked.push(count);
            answers.pop_front().unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shared_quota_is_asked_first_and_the_answer_is_what_this_node_shows_and_continues_with() {
        let answer = |is_granted, seconds| Some(Taken { is_granted, full_in: Duration::from_secs(seconds) });
        let shared = Arc::new(Answers::default());
        shared.0.lock().0.extend([answer(true, 40), answer(false, 50), None, answer(true, 20)]);
        let rates = Rates::new(NonZeroU32::new(6), Some(Arc::clone(&shared) as _));
        let (alice, limit) = (caller::named("alice"), 6);
        let left = || rates.quota(alice, Instant::now()).unwrap().left;
        assert_eq!(rates.take_shared(alice, 1).await, Ok(true));
        assert_eq!(left(), 2, "other nodes took three");
        let refused = rates.take_shared(alice, 2).await;
        assert_eq!(refused, Err(Refused::TooFast { limit, retry_after: Duration::from_secs(10) }));
        assert_eq!(left(), 1);
        assert_eq!(rates.take_shared(alice, 1).await, Ok(false), "it can't be asked");
        assert_eq!((rates.take(alice, 1, Instant::now()), left()), (Ok(()), 0));
        let refused = rates.take_shared(alice, 1).await;
        assert_eq!(refused, Err(Refused::TooFast { limit, retry_after: Duration::from_secs(10) }), "it is not asked");
        rates.put_back(alice, 4).await;
        assert_eq!((left(), &*shared.0.lock().1), (4, &[1, 2, 1, -4][..]));
        shared.0.lock().0.push_back(answer(true, 3_600));
        assert_eq!(rates.take_shared(alice, 1).await, Ok(true));
        assert_eq!(rates.quota(alice, Instant::now()).unwrap().full_in, MINUTE, "a wrong clock does no more");
        assert_eq!(rates.take_shared(caller::operator(), 100).await, Ok(false));
    }
}
