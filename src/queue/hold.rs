//! A client that is held for its answer, for as long as the answer can still come in time.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    error::QueueError,
    handles::{Inner, Queue},
    order::Waiting,
    service_time::{Expectation, Progress},
};
use crate::job::{Job, JobRecord, JobState};

/// How often it is checked whether the answer of a held client can still come in time.
pub(super) const CHANCE_POLL: Duration = Duration::from_secs(1);

/// The chance of an answer in time that is enough where a worker is free for it.
const EVEN_CHANCE: f64 = 0.5;

/// The chance that is needed where more clients wait than workers are free: a call that ends too late takes the time of a
/// call for another client.
const ALMOST_SURE: f64 = 0.97;

/// How much time a client that has to wait for a worker needs beyond that, since the start of its call is an estimate. It
/// makes the queue shorter under overload, and costs no call.
pub(super) const SLACK: Duration = Duration::from_millis(1_000);

/// With a smaller chance a client whose job is running is not held any longer.
const FORLORN: f64 = 0.02;

impl Queue {
    /// The job of a held client: once it has ended, or as it stands when it can't end in time any more or the service shuts
    /// down.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn answer(&self, waiting: &Waiting) -> Result<JobRecord, QueueError> {
        let interest = self.0.waiters.register(waiting.job());
        loop {
            let signalled = interest.signal().notified();
            let job = self.0.find(waiting.job()).await?;
            let now = Instant::now();
            let is_over = job.state.is_final() || self.0.closing.is_cancelled() || now >= waiting.until();
            if is_over || !self.may_be_met(&job, waiting) {
                if matches!(job.state, JobState::Queued { .. }) {
                    self.0.order.demote(waiting);
                }
                self.0.history.waited(job.state.is_final());
                return self.0.get(waiting.job()).await;
            }
            tokio::select! {
                biased;
                () = signalled => {}
                () = waiting.signal().notified() => {}
                () = tokio::time::sleep_until(waiting.until().min(now + CHANCE_POLL)) => {}
                () = self.0.closing.cancelled() => {}
            }
        }
    }

    /// Whether a client that waits may still have its answer in time.
    fn may_be_met(&self, job: &Job, waiting: &Waiting) -> bool {
        let left = waiting.until().saturating_duration_since(Instant::now());
        let expectation = self.0.service_time.expectation(&waiting.kind);
        let JobState::Queued { run_at } = job.state else {
            let progress = self.0.running.progress_of(job.id).filter(|_| self.0.policy.deadlines_first);
            let is_forlorn = |progress: Progress| {
                (expectation.is_learnt || progress.text.is_some()) && expectation.chance_from(progress, left) < FORLORN
            };
            return progress.is_none_or(|progress| !is_forlorn(progress));
        };
        // The same question is already running, or the claim is being stored: the attempt has as good as begun.
        if waiting.is_picked() || self.0.board.is_blocked(job.id) {
            return true;
        }
        let held = match (self.0.policy.allowance)(job.model).hold {
            _ if self.0.is_paused() => return false,
            Some(hold) => match hold.opens_in {
                Some(opens_in) => opens_in,
                None => return false,
            },
            None => Duration::ZERO,
        };
        let left = left.saturating_sub(held.max(run_at.since(self.0.now())));
        let is_in_order = !self.0.policy.deadlines_first;
        !left.is_zero() && (is_in_order || !waiting.is_demoted() && self.0.is_met(&expectation, left, false))
    }
}

impl Inner {
    /// Whether an answer that begins now is likely enough to be there within `left`.
    pub(super) fn is_met(&self, expectation: &Expectation, left: Duration, is_contested: bool) -> bool {
        let chance = expectation.chance(left);
        // What is not known yet keeps no client from waiting for a free worker.
        if is_contested { chance >= ALMOST_SURE } else { chance >= EVEN_CHANCE || !expectation.is_learnt }
    }
}
