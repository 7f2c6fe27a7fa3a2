//! What time runs out on: attempts that nobody makes any more, deadlines, and how long ended jobs stay.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::try_join_all;
use tracing::{error, info, warn};

use super::{error::QueueError, handles::WorkQueue, refused::Refused};
use crate::job::{FailureClass, Job, JobEvent};

/// Most jobs that one step of the sweeper ends or removes: more at once would show in the latency of submissions.
const SWEEP_STEP: usize = 64;

/// Most jobs that one step removes when retention has fallen behind, which takes thousands of jobs a second: some
/// milliseconds of latency are better than a disk that fills.
const SWEEP_STEP_BEHIND: usize = 512;

impl WorkQueue {
    /// Ends the attempts that nobody makes any more: those of nodes that are lost or have started afresh. Returns their number.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn end_lost(&self) -> Result<usize, QueueError> {
        let (now, own, policy) = (self.0.now(), self.0.owner(), &self.0.policy);
        let is_lost = |job: &Arc<Job>| match job.owner {
            // A task of this process ended without a result.
            Some(owner) if owner == own => {
                !self.0.running.holds(job) && job.started_at.is_none_or(|at| at.plus(policy.lease) <= now)
            }
            // It stops, or its answer is about to be stored.
            Some(owner) if own.follows(owner) && self.0.running.holds(job) => false,
            Some(owner) => !policy.nodes.may_run(owner),
            None => true,
        };
        let mut lost = self.0.board.running();
        lost.retain(is_lost);
        // Together, so that few commits hold them.
        for some in lost.chunks(SWEEP_STEP) {
            try_join_all(some.iter().map(|job| self.expire(job))).await?;
        }
        Ok(lost.len())
    }

    /// Ends what time has run out on and removes what has been stored long enough, a step at a time. Returns whether there may be
    /// more to do at once.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn sweep(&self) -> Result<bool, QueueError> {
        let now = self.0.now();
        // Should the dispatcher have missed a signal.
        self.0.ready.notify_one();
        let ended = self.end_overdue().await?;
        self.end_lost().await?;
        let keep_for = self.0.policy.keep_finished_for;
        // A clock that has jumped ahead makes nothing old.
        let before = now.minus(keep_for).minus(self.0.clock.skipped(keep_for));
        let counts = self.0.counts();
        let finished = counts.succeeded + counts.failed + counts.cancelled;
        // The further behind, the larger the step, so that any load finds its level.
        let surplus = finished.saturating_sub(self.0.policy.max_finished);
        let step = (surplus / 16).clamp(SWEEP_STEP, SWEEP_STEP_BEHIND);
        let pruned = self.0.store.prune(before, self.0.policy.max_finished, step).await?;
        Ok(ended == SWEEP_STEP || pruned >= step)
    }

    /// Ends the jobs whose deadline is over, at most as many as a step may, and returns their number.
    /// A start does this until there are none, before the first claim: a job whose deadline passed while no process ran would be
    /// claimed and paid for otherwise.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn end_overdue(&self) -> Result<usize, QueueError> {
        let overdue = self.0.board.overdue(SWEEP_STEP);
        for job in &overdue {
            self.0.try_transition(job.id, JobEvent::MissDeadline).await?;
        }
        Ok(overdue.len())
    }

    /// Waits until there is something to sweep, at most `at_most`.
    pub async fn until_due(&self, at_most: Duration) {
        let now = self.0.now();
        let wait = self.0.board.next_due().map_or(at_most, |due| due.since(now).min(at_most));
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => {}
            () = self.0.due.notified() => {}
        }
    }

    async fn expire(&self, job: &Job) -> Result<(), QueueError> {
        let policy = &self.0.policy;
        let again = policy.retry_unknown_outcome && policy.retries.allow(job, FailureClass::Other);
        let at_risk = self.0.at_risk(job.id).await;
        let retry_at = again.then(|| self.0.now());
        let event = JobEvent::Expire { attempt: job.attempt, retry_at, at_risk };
        if let Some(after) = self.0.try_transition(job.id, event).await? {
            let status = after.status(self.0.now());
            warn!(job.id = %job.id, attempt = job.attempt, job.status = %status,
                "the outcome of an attempt is unknown, and it may have been billed: the process that made it ended");
        }
        Ok(())
    }

    /// Records whether the store's file is where its path says. While it is not, no job is accepted and no call is made:
    /// what is written could not be found again.
    pub fn record_folder(&self, is_gone: bool) {
        match (self.0.bounds.is_folder_gone.swap(is_gone, Ordering::Relaxed), is_gone) {
            (false, true) => error!("{}", Refused::FolderGone),
            (true, false) => {
                info!("the data folder is back: jobs are accepted");
                self.0.ready.notify_one();
            }
            _ => {}
        }
    }

    /// Tells the queue how much space the disk has, and how much it should have at least.
    pub fn record_disk_space(&self, free_bytes: u64, floor_bytes: u64) {
        match self.0.bounds.disk_space.note(free_bytes, floor_bytes) {
            (None, Some(shortage)) => error!("no jobs are accepted: {shortage}"),
            (Some(_), None) => info!(disk.free_bytes = free_bytes, "enough disk space again: jobs are accepted"),
            _ => {}
        }
    }
}
