//! How long claims and calls take, and so how many jobs to claim before a call has ended.
//!
//! A claim is on disk before its call is made. On a slow disk, claiming a job only once a call has ended leaves
//! Claude idle meanwhile: at 0.1 s for a claim and 2 s for a call, a twentieth of all calls.

use std::time::Duration;

use parking_lot::Mutex;

/// Claims that are quicker lose less than a hundredth of the shortest call that Claude is known to take, 2 s.
const SLOW_CLAIM: Duration = Duration::from_millis(20);

/// Calls count as no shorter: those of tests and of failures tell nothing of Claude's.
const SHORTEST_CALL: Duration = Duration::from_secs(1);

const NEWEST_WEIGHT: f64 = 0.1;

/// More than the mean of what is claimed within the time of a claim: calls end in bunches.
const RESERVE: f64 = 1.5;

#[derive(Debug, Default)]
pub(super) struct Prefetch(Mutex<Means>);

/// In seconds.
#[derive(Debug)]
struct Means {
    claim: f64,
    call: f64,
}

impl Default for Means {
    fn default() -> Means {
        Means { claim: 0.0, call: SHORTEST_CALL.as_secs_f64() }
    }
}

impl Prefetch {
    /// A claim took so long. Returns how many jobs to claim ahead, with at most `calls` at once: as many as calls end in the
    /// time of a claim, and some.
    pub(super) fn claimed(&self, took: Duration, calls: usize) -> usize {
        let mut means = self.0.lock();
        means.claim += NEWEST_WEIGHT * (took.as_secs_f64() - means.claim);
        if means.claim < SLOW_CLAIM.as_secs_f64() {
            return 0;
        }
        let ahead = (RESERVE * calls as f64 * means.claim / means.call).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of calls")]
        {
            ahead.min(calls as f64) as usize
        }
    }

    pub(super) fn called(&self, took: Duration) {
        let mut means = self.0.lock();
        means.call += NEWEST_WEIGHT * (took.max(SHORTEST_CALL).as_secs_f64() - means.call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is claimed ahead once claims and calls have taken so many milliseconds for a while.
    fn ahead(calls: usize, claim: u64, call: u64) -> usize {
        let prefetch = Prefetch::default();
        for _ in 0..100 {
            prefetch.called(Duration::from_millis(call));
            prefetch.claimed(Duration::from_millis(claim), calls);
        }
        prefetch.claimed(Duration::from_millis(claim), calls)
    }

    #[test]
    fn as_many_are_claimed_ahead_as_calls_end_in_the_time_of_a_claim_and_some() {
        assert_eq!(ahead(20, 110, 2_000), 2);
        assert_eq!(ahead(64, 100, 2_000), 5);
        assert_eq!(ahead(8, 100, 20_000), 0, "a call ends every 2.5 s");
        assert_eq!(ahead(20, 5_000, 1_000), 20, "never more than calls can be under way");
    }

    #[test]
    fn nothing_is_claimed_ahead_on_a_quick_disk_or_where_calls_seldom_end() {
        assert_eq!(ahead(64, 19, 2_000), 0);
        assert_eq!(ahead(1, 100, 1), 0, "short calls count as a second");
    }
}
