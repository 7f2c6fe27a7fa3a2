//! The bounds on pending jobs: how many, of whom, how fast, and whether the disk has room. Every route to a pending job
//! passes them: a submission, a batch, a retry of one job or many, an import. The board asks while it counts
//! ([`super::board::Board::admit`]), so no two requests can pass a bound side by side.
//!
//! The floor of disk space lies well above zero, so that what was accepted still fits when nothing new does: claims,
//! answers, and what the store needs to open again. The sweeper measures it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::Instant;

use super::{
    rates::Rates,
    refused::{Refused, Shortage},
};
use crate::job::caller::{self, Caller, Kind};

/// This part of the queue is reserved for callers with a name and operators, ...
const NAMED_PART: usize = 10;

/// ... and this part of it for operators alone.
const OPERATOR_PART: usize = 100;

/// Jobs that are about to become pending together, and what is pending at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Admission {
    /// Who wants them pending.
    pub(super) by: Caller,
    /// Whose jobs they are; `None` where no caller's own bound applies.
    pub(super) owner: Caller,
    /// Jobs wanted, those included that have their answer already.
    pub(super) submits: usize,
    /// They are counted already, by all nodes together.
    pub(super) is_counted: bool,
    /// Jobs that become pending.
    pub(super) jobs: usize,
    /// Those of them that are for later.
    pub(super) scheduled: usize,
    /// Pending jobs.
    pub(super) pending: usize,
    /// Those of them that are for later.
    pub(super) pending_scheduled: usize,
    /// Pending jobs of the owner.
    pub(super) pending_of_owner: usize,
}

/// The bounds.
pub(super) struct Bounds {
    pub(super) max_pending: usize,
    pub(super) max_scheduled: usize,
    pub(super) max_pending_per_caller: usize,
    pub(super) rates: Rates,
    pub(super) disk_space: DiskSpace,
    pub(super) is_folder_gone: AtomicBool,
}

impl Bounds {
    /// Whether these jobs may become pending. The caller's quota is charged only if they do.
    pub(super) fn admit(&self, asked: &Admission) -> Result<(), Refused> {
        if self.is_folder_gone.load(Ordering::Relaxed) {
            return Err(Refused::FolderGone);
        }
        if let Some(shortage) = self.disk_space.shortage() {
            return Err(Refused::StorageLow(shortage));
        }
        let Admission { by, owner, submits, is_counted, jobs, scheduled, pending, pending_scheduled, pending_of_owner } =
            *asked;
        let (kind, max) = (caller::kind(by), self.max_pending);
        let limit = match kind {
            Kind::Operator => max,
            Kind::Named => max - max / OPERATOR_PART,
            Kind::Unnamed => max - max / NAMED_PART,
        };
        if jobs > 0 && pending.saturating_add(jobs) > limit {
            return Err(Refused::Full { pending, limit, max });
        }
        let limit = self.max_scheduled;
        if scheduled > 0 && pending_scheduled.saturating_add(scheduled) > limit {
            return Err(Refused::ScheduledFull { pending: pending_scheduled, limit });
        }
        let limit = self.max_pending_per_caller;
        let is_bounded = owner.is_some() && caller::kind(owner) != Kind::Operator;
        if jobs > 0 && is_bounded && pending_of_owner.saturating_add(jobs) > limit {
            return Err(Refused::CallerFull { pending: pending_of_owner, more: jobs, limit });
        }
        if is_counted { Ok(()) } else { self.rates.take(by, submits, Instant::now()) }
    }

    /// The used share of the places, of all or of those for jobs for later, whichever is larger.
    pub(super) fn used(&self, pending: usize, pending_scheduled: usize) -> f64 {
        let share = |used: usize, of: usize| used as f64 / of as f64;
        share(pending, self.max_pending).max(share(pending_scheduled, self.max_scheduled))
    }
}

/// The free space of the disk as it was last seen.
#[derive(Debug, Default)]
pub(super) struct DiskSpace {
    free: AtomicU64,
    /// Zero while there is enough.
    short_of: AtomicU64,
}

impl DiskSpace {
    /// Records the free space; a floor of zero is none. Gives the shortage before and the one from now on.
    pub(super) fn note(&self, free_bytes: u64, floor_bytes: u64) -> (Option<Shortage>, Option<Shortage>) {
        let before = self.shortage();
        let seen = Shortage { free_bytes, floor_bytes };
        let needed = if before.is_some() { seen.enough_bytes() } else { floor_bytes };
        let after = (free_bytes < needed).then_some(seen);
        self.free.store(free_bytes, Ordering::Relaxed);
        self.short_of.store(after.map_or(0, |shortage| shortage.floor_bytes), Ordering::Relaxed);
        (before, after)
    }

    pub(super) fn shortage(&self) -> Option<Shortage> {
        let floor_bytes = self.short_of.load(Ordering::Relaxed);
        (floor_bytes > 0).then(|| Shortage { free_bytes: self.free.load(Ordering::Relaxed), floor_bytes })
    }
}

#[cfg(test)]
mod tests;
