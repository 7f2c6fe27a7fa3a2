//! The attempts under way: those of this process, which must know when they lose their job, and those of other nodes.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    draft::Draft,
    service_time::{Kind, Progress},
};
use crate::{
    clock::{Moments, Timestamp},
    job::{Job, JobId, JobRequest, Owner},
};

/// The attempts under way.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// In this process.
    own: Mutex<HashMap<JobId, RunningAttempt>>,
    /// On other nodes, as far as this one knows.
    others: Mutex<HashMap<JobId, OtherAttempt>>,
    /// The attempts, by number, that this process has taken on or is claiming, until their jobs show that they ended or
    /// the claim fails: each is made once, however often the feed reports its claim.
    taken: Mutex<HashMap<JobId, u32>>,
}

/// An attempt, as the dispatcher describes it to other nodes.
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
    owner: Option<Owner>,
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
    /// Takes an attempt on. False if that was done before.
    pub(super) fn take(&self, id: JobId, attempt: u32) -> bool {
        self.taken.lock().insert(id, attempt) != Some(attempt)
    }

    /// The attempt that was to be claimed was not.
    pub(super) fn give_back(&self, id: JobId) {
        self.taken.lock().remove(&id);
    }

    /// Another node makes the attempt of this job.
    pub(super) fn begin_elsewhere(&self, id: JobId, kind: Kind) {
        self.others.lock().insert(id, OtherAttempt { kind, moments: (Instant::now(), None) });
    }

    /// The attempt of this job on another node is over.
    pub(super) fn end_elsewhere(&self, id: JobId) {
        self.others.lock().remove(&id);
    }

    /// Stops the attempts of all former owners: other nodes may take them for lost.
    pub(super) fn abandon(&self, owner: Owner) -> usize {
        let own = self.own.lock();
        let former = || own.values().filter(|under_way| under_way.owner != Some(owner));
        former().for_each(|under_way| under_way.lost.cancel());
        former().count()
    }

    /// An attempt begins that `lost` stops and that writes what has come of its answer into `draft`.
    pub(super) fn begin(
        self: &Arc<Self>,
        job: &Job,
        request: Arc<JobRequest>,
        lost: CancellationToken,
        draft: Arc<Draft>,
    ) -> AttemptSlot {
        let (id, attempt, is_waited_for) = (job.id, job.attempt, job.waited_for);
        self.own.lock().insert(id, RunningAttempt { attempt, owner: job.owner, lost, draft, request, is_waited_for });
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
        let memo = |job: &JobId, kind: Kind, (begun_at, text): (Instant, Option<(Instant, usize)>)| {
            let text = text.map(|(first, bytes)| (moments.timestamp(first), bytes));
            AttemptMemo { job: *job, kind, begun_at: moments.timestamp(begun_at), text }
        };
        let (own, others) = (self.own.lock(), self.others.lock());
        let own = own.iter().map(|(job, under_way)| memo(job, under_way.kind(), under_way.draft.moments()));
        let others = others.iter().map(|(job, other)| memo(job, other.kind.clone(), other.moments));
        let mut attempts: Vec<AttemptMemo> = own.chain(others).collect();
        attempts.sort_unstable_by_key(|attempt| attempt.job);
        attempts
    }

    /// These attempts are under way on all nodes, by what the dispatcher knows.
    pub(super) fn adopt(&self, attempts: Vec<AttemptMemo>, moments: &Moments) {
        let other = |attempt: AttemptMemo| {
            let text = attempt.text.map(|(first, bytes)| (moments.instant(first), bytes));
            (attempt.job, OtherAttempt { kind: attempt.kind, moments: (moments.instant(attempt.begun_at), text) })
        };
        let own = self.own.lock();
        let others = attempts.into_iter().filter(|attempt| !own.contains_key(&attempt.job));
        *self.others.lock() = others.map(other).collect();
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
        let mut ids: Vec<JobId> = self.own.lock().keys().chain(self.taken.lock().keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            match pending(id) {
                Some(job) => self.check(&job),
                None => {
                    self.taken.lock().remove(&id);
                    self.own.lock().get(&id).into_iter().for_each(|under_way| under_way.lost.cancel());
                }
            }
        }
        self.others.lock().retain(|id, _| pending(*id).is_some_and(|job| job.is_running()));
    }

    /// Stops the attempt that believes to own the job, if `job` says that it does not (any more).
    pub(super) fn check(&self, job: &Job) {
        if !job.is_running() {
            self.end_elsewhere(job.id);
        }
        // An older state than the attempt's own claim says nothing of it.
        let is_over = |attempt: u32| job.attempt > attempt || job.attempt == attempt && !job.is_running();
        let mut taken = self.taken.lock();
        if taken.get(&job.id).is_some_and(|attempt| is_over(*attempt)) {
            taken.remove(&job.id);
        }
        drop(taken);
        if let Some(under_way) = self.own.lock().get(&job.id).filter(|under_way| is_over(under_way.attempt)) {
            under_way.lost.cancel();
        }
    }
}

impl AttemptSlot {
    pub(super) fn end(&self) {
        self.running.end(self.id, self.attempt);
    }
}

impl Drop for AttemptSlot {
    fn drop(&mut self) {
        self.end();
    }
}
