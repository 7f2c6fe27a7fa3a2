//! Clients that wait for a job's end or for any change of it, and running attempts, which must know when they lose their
//! job. Woken by the store's feed; each looks at the job again.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    draft::Draft,
    service_time::{Kind, Progress},
};
use crate::{
    clock::{Moments, Timestamp},
    job::{Job, JobId, JobRequest, JobState},
};

/// Clients that wait for jobs, one signal a job, however many wait for it.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<HashMap<JobId, Signal>>);

/// A job that is waited for.
#[derive(Debug, Default)]
struct Signal {
    /// Counted under the lock: the signal's own count of owners still falls after that is released.
    clients: usize,
    signal: Arc<Notify>,
}

/// An interest in a job; ends when dropped.
#[derive(Debug)]
pub(super) struct Interest {
    waiters: Arc<Waiters>,
    id: JobId,
    signal: Arc<Notify>,
}

impl Waiters {
    /// Registers interest. Do so before you check the job: what changes afterwards is signalled.
    pub(super) fn register(self: &Arc<Self>, id: JobId) -> Interest {
        let mut waiters = self.0.lock();
        let waited = waiters.entry(id).or_default();
        waited.clients += 1;
        Interest { waiters: Arc::clone(self), id, signal: Arc::clone(&waited.signal) }
    }

    pub(super) fn notify(&self, id: JobId) {
        if let Some(waited) = self.0.lock().get(&id) {
            waited.signal.notify_waiters();
        }
    }

    pub(super) fn notify_all(&self) {
        let mut waited: Vec<(JobId, Arc<Notify>)> =
            self.0.lock().iter().map(|(id, waited)| (*id, Arc::clone(&waited.signal))).collect();
        // In the same order in every run.
        waited.sort_unstable_by_key(|(id, _)| *id);
        waited.iter().for_each(|(_, signal)| signal.notify_waiters());
    }

    /// How many clients wait.
    pub(super) fn len(&self) -> usize {
        self.0.lock().values().map(|waited| waited.clients).sum()
    }
}

impl Interest {
    pub(super) fn signal(&self) -> &Arc<Notify> {
        &self.signal
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut waiters = self.waiters.0.lock();
        if let Some(waited) = waiters.get_mut(&self.id) {
            waited.clients -= 1;
            if waited.clients == 0 {
                waiters.remove(&self.id);
            }
        }
    }
}

/// The attempts under way.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// In this process.
    own: Mutex<HashMap<JobId, RunningAttempt>>,
    /// On the dispatcher, as far as this node knows; empty on the dispatcher itself.
    others: Mutex<HashMap<JobId, OtherAttempt>>,
}

/// An attempt, as the dispatcher tells other nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct AttemptMemo {
    pub(super) job: JobId,
    pub(super) kind: Kind,
    pub(super) begun_at: Timestamp,
    /// When the first piece of its text came, and how many bytes came.
    pub(super) text: Option<(Timestamp, usize)>,
}

/// An attempt on another node: its kind, when it was claimed, when the first piece of its text came, and how many bytes.
#[derive(Debug)]
struct OtherAttempt {
    kind: Kind,
    moments: (Instant, Option<(Instant, usize)>),
}

/// An attempt under way.
#[derive(Debug)]
struct RunningAttempt {
    attempt: u32,
    lost: CancellationToken,
    draft: Arc<Draft>,
    request: Arc<JobRequest>,
    is_waited_for: bool,
}

impl RunningAttempt {
    fn kind(&self) -> Kind {
        Kind::of(&self.request, self.is_waited_for)
    }
}

/// An attempt's stay in this process; ends when dropped, and so with a worker that panics.
#[derive(Debug)]
pub(super) struct AttemptSlot {
    running: Arc<Running>,
    id: JobId,
    attempt: u32,
}

impl Running {
    /// An attempt begins that `lost` stops and that writes what has come of its answer into `draft`.
    pub(super) fn begin(
        self: &Arc<Self>,
        job: &Job,
        request: Arc<JobRequest>,
        lost: CancellationToken,
        draft: Arc<Draft>,
    ) -> AttemptSlot {
        let (id, attempt, is_waited_for) = (job.id, job.attempt, job.waited_for);
        self.own.lock().insert(id, RunningAttempt { attempt, lost, draft, request, is_waited_for });
        AttemptSlot { running: Arc::clone(self), id, attempt }
    }

    /// Whether this very attempt is under way here.
    pub(super) fn holds(&self, job: &Job) -> bool {
        self.own.lock().get(&job.id).is_some_and(|under_way| under_way.attempt == job.attempt)
    }

    /// What the job asks, while an attempt is under way.
    pub(super) fn request(&self, id: JobId) -> Option<Arc<JobRequest>> {
        self.own.lock().get(&id).map(|under_way| Arc::clone(&under_way.request))
    }

    /// The kind of the answer to the job's attempt, if one is under way.
    pub(super) fn kind(&self, id: JobId) -> Option<Kind> {
        self.own.lock().get(&id).map(RunningAttempt::kind)
    }

    /// The kind and the progress of every attempt, on all nodes.
    pub(super) fn progress(&self) -> Vec<(Kind, Progress)> {
        let (own, others) = (self.own.lock(), self.others.lock());
        let own = own.values().map(|under_way| (under_way.kind(), under_way.draft.progress()));
        own.chain(others.values().map(|other| (other.kind.clone(), Progress::of(other.moments)))).collect()
    }

    /// The progress of the job's attempt, if one is under way on any node.
    pub(super) fn progress_of(&self, id: JobId) -> Option<Progress> {
        let other = || self.others.lock().get(&id).map(|other| Progress::of(other.moments));
        self.draft(id).map(|draft| draft.progress()).or_else(other)
    }

    pub(super) fn memo(&self, moments: &Moments) -> Vec<AttemptMemo> {
        let memo = |(job, under_way): (&JobId, &RunningAttempt)| {
            let (begun_at, text) = under_way.draft.moments();
            let text = text.map(|(first, bytes)| (moments.timestamp(first), bytes));
            AttemptMemo { job: *job, kind: under_way.kind(), begun_at: moments.timestamp(begun_at), text }
        };
        let mut attempts: Vec<AttemptMemo> = self.own.lock().iter().map(memo).collect();
        attempts.sort_unstable_by_key(|attempt| attempt.job);
        attempts
    }

    /// These attempts are under way on another node, and no others.
    pub(super) fn adopt(&self, attempts: Vec<AttemptMemo>, moments: &Moments) {
        let other = |attempt: AttemptMemo| {
            let text = attempt.text.map(|(first, bytes)| (moments.instant(first), bytes));
            (attempt.job, OtherAttempt { kind: attempt.kind, moments: (moments.instant(attempt.begun_at), text) })
        };
        *self.others.lock() = attempts.into_iter().map(other).collect();
    }

    /// What has come of the answer to the job's attempt, if one is under way.
    pub(super) fn draft(&self, id: JobId) -> Option<Arc<Draft>> {
        self.own.lock().get(&id).map(|under_way| Arc::clone(&under_way.draft))
    }

    /// What has come of the answers of all attempts in this process.
    pub(super) fn drafts(&self) -> Vec<(JobId, Arc<Draft>)> {
        self.own.lock().iter().map(|(id, under_way)| (*id, Arc::clone(&under_way.draft))).collect()
    }

    /// How many there are in this process.
    pub(super) fn own(&self) -> usize {
        self.own.lock().len()
    }

    /// How many there are on all nodes.
    pub(super) fn len(&self) -> usize {
        self.own.lock().len() + self.others.lock().len()
    }

    pub(super) fn end(&self, id: JobId, attempt: u32) {
        let mut running = self.own.lock();
        if running.get(&id).is_some_and(|under_way| under_way.attempt == attempt) {
            running.remove(&id);
        }
    }

    /// Stops the attempts whose jobs are, by now, not theirs. `pending` gives a job as long as it has not ended.
    pub(super) fn check_all(&self, pending: impl Fn(JobId) -> Option<Arc<Job>>) {
        let mut ids: Vec<JobId> = self.own.lock().keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            match pending(id) {
                Some(job) => self.check(&job),
                None => self.own.lock().get(&id).into_iter().for_each(|under_way| under_way.lost.cancel()),
            }
        }
    }

    /// Stops the attempt that believes to own the job, if `job` says that it does not (any more).
    pub(super) fn check(&self, job: &Job) {
        if !job.is_running() {
            self.others.lock().remove(&job.id);
        }
        if let Some(RunningAttempt { attempt, lost, .. }) = self.own.lock().get(&job.id) {
            let owns = matches!(job.state, JobState::Running { .. }) && job.attempt == *attempt;
            // An older state than the attempt's own claim says nothing of it.
            if !owns && job.attempt >= *attempt {
                lost.cancel();
            }
        }
    }
}

impl Drop for AttemptSlot {
    fn drop(&mut self) {
        self.running.end(self.id, self.attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_clients_that_leave_at_the_same_moment() {
        let (waiters, together) = (Arc::<Waiters>::default(), std::sync::Barrier::new(2));
        let leave = || {
            for job in 0..30_000 {
                let interest = waiters.register(JobId::from_u128(job));
                together.wait();
                drop(interest);
            }
        };
        std::thread::scope(|threads| {
            threads.spawn(leave);
            threads.spawn(leave);
        });
        assert!(waiters.0.lock().is_empty());
    }

    #[test]
    fn every_client_of_a_job_counts_as_waiting() {
        let waiters = Arc::<Waiters>::default();
        let both = [waiters.register(JobId::nil()), waiters.register(JobId::nil())];
        assert_eq!(waiters.len(), 2);
        drop(both);
        assert_eq!(waiters.len(), 0);
    }
}
