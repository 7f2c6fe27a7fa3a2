//! How long the system prompt is cached, by the measured gaps between the calls of a model: writing to the cache costs
//! more than a plain prompt, and pays only if the next call comes before the entry expires.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::claude::message::CacheTtl;

/// Gaps that count, the newest: few, so that the choice follows the load, and enough that one pause changes nothing.
const MAX_GAPS: usize = 9;

#[derive(Clone, Debug, Default)]
pub(super) struct Gaps {
    last: Option<Instant>,
    recent: VecDeque<Duration>,
}

impl Gaps {
    pub(super) fn add(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.recent.truncate(MAX_GAPS - 1);
            self.recent.push_front(now.duration_since(last));
        }
    }

    pub(super) fn ttl(&self) -> CacheTtl {
        let mut gaps: Vec<Duration> = self.recent.iter().copied().collect();
        gaps.sort_unstable();
        match gaps.get(gaps.len() / 2) {
            Some(median) if *median >= Duration::from_hours(1) => CacheTtl::Off,
            Some(median) if *median >= Duration::from_mins(5) => CacheTtl::OneHour,
            _ => CacheTtl::FiveMinutes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_cache_lasts_as_long_as_most_gaps_need() {
        let (mut gaps, start) = (Gaps::default(), Instant::now());
        let mut now = start;
        let mut after = |minutes: &[u64]| {
            for minutes in minutes {
                now += Duration::from_mins(*minutes);
                gaps.add(now);
            }
            gaps.ttl()
        };
        assert_eq!(after(&[]), CacheTtl::FiveMinutes);
        assert_eq!(after(&[0]), CacheTtl::FiveMinutes, "one call has no gap");
        assert_eq!(after(&[4, 4, 120]), CacheTtl::FiveMinutes, "one pause changes nothing");
        assert_eq!(after(&[10; MAX_GAPS]), CacheTtl::OneHour);
        assert_eq!(after(&[61; MAX_GAPS]), CacheTtl::Off);
        assert_eq!(after(&[1; MAX_GAPS]), CacheTtl::FiveMinutes);
    }
}
