//! Why jobs can't become pending, in words.

use std::{fmt, time::Duration};

/// Above a shortage of disk space, this part of the floor must be free before jobs are accepted again, ...
const MARGIN_PART: u64 = 8;

/// ... but no more than this. Without a margin, submissions would go on and off with every few records.
const MAX_MARGIN_BYTES: u64 = 64 << 20;

/// Why jobs can't become pending.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The bound on all pending jobs.
    #[error("the queue is full: {pending} jobs are pending, and the limit is {limit}{}", reserved(*limit, *max))]
    Full {
        pending: usize,
        /// The bound for this caller.
        limit: usize,
        /// The bound for the operator: MAX_QUEUED_JOBS.
        max: usize,
    },
    /// The bound on jobs for later.
    #[error(
        "{pending} jobs are scheduled, and the limit is {limit}, half of MAX_QUEUED_JOBS; submit it without run_at, or later"
    )]
    ScheduledFull { pending: usize, limit: usize },
    /// The bound on a caller's pending jobs.
    #[error(
        "you have {pending} pending jobs and submitted {more} more, but the limit of one caller is {limit}: wait for some to \
         end, or cancel some"
    )]
    CallerFull { pending: usize, more: usize, limit: usize },
    /// The bound on a caller's submissions a minute.
    #[error("you may submit {limit} jobs a minute (SUBMITS_PER_MINUTE); retries count too")]
    TooFast { limit: u32, retry_after: Duration },
    /// More jobs at once than a caller may submit in a minute.
    #[error(
        "the batch has {jobs} jobs, but you may submit {limit} a minute (SUBMITS_PER_MINUTE): send smaller batches"
    )]
    BatchTooLarge { jobs: usize, limit: u32 },
    /// The store's file is no longer where the next start would look for it.
    #[error("the data folder was removed, moved or mounted over; no jobs are accepted until it is back")]
    FolderGone,
    /// The floor of free disk space.
    #[error("{0}")]
    StorageLow(Shortage),
}

fn reserved(limit: usize, max: usize) -> String {
    if limit == max {
        return " (MAX_QUEUED_JOBS)".to_owned();
    }
    format!("; the rest of MAX_QUEUED_JOBS ({max}) is reserved for callers with a key and for operators")
}

/// The disk has less space than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What is free.
    pub free_bytes: u64,
    /// What should be free.
    pub floor_bytes: u64,
}

impl Shortage {
    /// From so many free bytes on, submissions are accepted again.
    pub fn enough_bytes(self) -> u64 {
        self.floor_bytes + (self.floor_bytes / MARGIN_PART).min(MAX_MARGIN_BYTES)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "the disk has {} MiB free, but needs {}; jobs are accepted again with {} MiB free",
            mib(self.free_bytes),
            mib(self.floor_bytes),
            mib(self.enough_bytes().next_multiple_of(1 << 20)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_margin_of_a_high_floor_is_bounded() {
        let shortage = Shortage { free_bytes: 0, floor_bytes: 100 << 30 };
        assert_eq!(shortage.enough_bytes(), (100 << 30) + MAX_MARGIN_BYTES);
    }

    #[test]
    fn a_shortage_says_what_is_free_and_what_is_needed() {
        let told = Shortage { free_bytes: 12 * MIB + 1, floor_bytes: 81 * MIB }.to_string();
        assert!(told.contains("has 12 MiB free, but needs 81;") && told.contains("with 92 MiB free"), "{told}");
    }
}
