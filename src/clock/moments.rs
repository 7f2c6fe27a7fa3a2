//! Moments of this process as service time, which other nodes know too.

use std::time::Duration;

use tokio::time::Instant;

use super::{Clock, Timestamp};

/// A smaller difference is that of two readings.
const TOLERANCE: Duration = Duration::from_millis(100);

/// One moment by both clocks. The same moment is always converted to the same time.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    instant: Instant,
    at: Timestamp,
}

impl Moments {
    pub fn now(clock: &Clock) -> Moments {
        Moments { instant: Instant::now(), at: clock.now() }
    }

    /// The same, unless the clocks have run apart.
    pub fn renewed(self, clock: &Clock) -> Moments {
        let now = Moments::now(clock);
        let expected = self.timestamp(now.instant);
        let is_apart = expected.since(now.at).max(now.at.since(expected)) > TOLERANCE;
        if is_apart { now } else { self }
    }

    pub fn timestamp(&self, instant: Instant) -> Timestamp {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.at.plus(later),
            None => self.at.minus(self.instant - instant),
        }
    }

    /// A moment from before this machine's start counts as now.
    pub fn instant(&self, at: Timestamp) -> Instant {
        let moved = match at >= self.at {
            true => self.instant.checked_add(at.since(self.at)),
            false => self.instant.checked_sub(self.at.since(at)),
        };
        moved.unwrap_or(self.instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_moment_has_the_same_time_on_both_nodes_and_after_a_jump_of_the_clock_the_new_one() {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let moments = Moments::now(&clock);
        for instant in [Instant::now() + 5 * SECOND, Instant::now() - 5 * SECOND] {
            assert_eq!(moments.instant(moments.timestamp(instant)), instant);
        }
        let later = Instant::now() + SECOND;
        tokio::time::advance(SECOND).await;
        clock.advance(SECOND);
        assert_eq!(moments.renewed(&clock).timestamp(later), clock.now());
        clock.advance(60 * SECOND);
        assert_eq!(moments.renewed(&clock).timestamp(later), clock.now());
    }
}
