//! Who waits for what: clients for a job's end or any news of it, workers for a job to claim, running attempts for word that they have
//! lost their job. Woken by the store's observer; every sleeper looks again at the store, which is the truth.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Claim,
    follow::Draft,
    service_time::{Kind, Progress},
};
use crate::{
    digest::Lane,
    job::{Job, JobId, JobRequest, JobState},
};

/// Clients that wait for jobs, one signal a job, however many wait for it.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<HashMap<JobId, Waited>>);

/// A job that is waited for.
#[derive(Debug, Default)]
struct Waited {
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
        self.0.lock().values().for_each(|waited| waited.signal.notify_waiters());
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

/// The attempts under way in this process.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashMap<JobId, UnderWay>>);

/// An attempt under way.
#[derive(Debug)]
struct UnderWay {
    attempt: u32,
    lost: CancellationToken,
    draft: Arc<Draft>,
    request: Arc<JobRequest>,
    is_waited_for: bool,
}

impl UnderWay {
    fn kind(&self) -> Kind {
        Kind::of(&self.request, self.is_waited_for)
    }
}

/// An attempt's stay in this process; ends when dropped, and so with a worker that panics.
#[derive(Debug)]
pub(super) struct Stay {
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
    ) -> Stay {
        let (id, attempt, is_waited_for) = (job.id, job.attempt, job.waited_for);
        self.0.lock().insert(id, UnderWay { attempt, lost, draft, request, is_waited_for });
        Stay { running: Arc::clone(self), id, attempt }
    }

    /// Whether this very attempt is under way here.
    pub(super) fn holds(&self, job: &Job) -> bool {
        self.0.lock().get(&job.id).is_some_and(|under_way| under_way.attempt == job.attempt)
    }

    /// What the job asks, while an attempt is under way.
    pub(super) fn request(&self, id: JobId) -> Option<Arc<JobRequest>> {
        self.0.lock().get(&id).map(|under_way| Arc::clone(&under_way.request))
    }

    /// The kind of the answer to the job's attempt, if one is under way.
    pub(super) fn kind(&self, id: JobId) -> Option<Kind> {
        self.0.lock().get(&id).map(UnderWay::kind)
    }

    /// The kind and the progress of every attempt.
    pub(super) fn progress(&self) -> Vec<(Kind, Progress)> {
        let running = self.0.lock();
        running.values().map(|under_way| (under_way.kind(), under_way.draft.progress())).collect()
    }

    /// What has come of the answer to the job's attempt, if one is under way.
    pub(super) fn draft(&self, id: JobId) -> Option<Arc<Draft>> {
        self.0.lock().get(&id).map(|under_way| Arc::clone(&under_way.draft))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }

    pub(super) fn end(&self, id: JobId, attempt: u32) {
        let mut running = self.0.lock();
        if running.get(&id).is_some_and(|under_way| under_way.attempt == attempt) {
            running.remove(&id);
        }
    }

    /// Stops the attempts whose jobs are, by now, not theirs. `pending` gives a job as long as it has not ended.
    pub(super) fn check_all(&self, pending: impl Fn(JobId) -> Option<Arc<Job>>) {
        let ids: Vec<JobId> = self.0.lock().keys().copied().collect();
        for id in ids {
            match pending(id) {
                Some(job) => self.check(&job),
                None => self.0.lock().get(&id).into_iter().for_each(|under_way| under_way.lost.cancel()),
            }
        }
    }

    /// Stops the attempt that believes to own the job, if `job` says that it does not (any more).
    pub(super) fn check(&self, job: &Job) {
        if let Some(UnderWay { attempt, lost, .. }) = self.0.lock().get(&job.id) {
            let owns = matches!(job.state, JobState::Running { .. }) && job.attempt == *attempt;
            // An older state than the attempt's own claim says nothing of it.
            if !owns && job.attempt >= *attempt {
                lost.cancel();
            }
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.running.end(self.id, self.attempt);
    }
}

/// Most workers that are woken at once: more than most services have.
const MAX_WOKEN: usize = 1_024;

/// Wakes idle workers, no more than there are jobs for.
///
/// A worker that has seen a job announces its *intent* before it waits for a permit, so that a permit is asked for once
/// a job and not once an idle worker.
#[derive(Debug, Default)]
pub(super) struct Work {
    intents: Mutex<usize>,
    signal: Notify,
    /// For workers that wait for a permit: a job of another model may have one.
    more: Notify,
}

impl Work {
    /// Waits until more jobs are claimable than workers intend to claim.
    pub(super) async fn intend(self: &Arc<Self>, claimable: impl Fn() -> usize) -> Intent {
        loop {
            let signalled = self.signal.notified();
            tokio::pin!(signalled);
            signalled.as_mut().enable();
            {
                let mut intents = self.intents.lock();
                if claimable() > *intents {
                    *intents += 1;
                    return Intent { work: Arc::clone(self) };
                }
            }
            signalled.await;
        }
    }

    /// Lets up to `jobs` idle workers look again. Of very many jobs the others are found by the workers that have claimed.
    pub(super) fn wake(&self, jobs: usize) {
        for _ in 0..jobs.min(MAX_WOKEN) {
            self.signal.notify_one();
            self.more.notify_one();
        }
    }

    /// Signalled when more jobs are ready.
    pub(super) fn more(&self) -> &Notify {
        &self.more
    }
}

/// A worker's intent to claim one job; given up when dropped.
#[derive(Debug)]
pub struct Intent {
    work: Arc<Work>,
}

impl Drop for Intent {
    fn drop(&mut self) {
        *self.work.intents.lock() -= 1;
        // What this worker leaves may have kept another one asleep.
        self.work.signal.notify_one();
    }
}

/// Idle workers that can be handed a job at its submission, so that it is accepted and claimed in one commit.
#[derive(Default)]
pub(super) struct Standby {
    offers: Mutex<BTreeMap<u64, Offer>>,
    /// Numbers are never used twice: a worker must not give up another one's place.
    next_number: AtomicU64,
}

/// What a worker on standby leaves behind.
struct Offer {
    permit: Permit,
    hand: oneshot::Sender<Claim>,
}

/// Takes a permit for one call for a job of this lane, if there is one at this moment.
pub type Permit = Arc<dyn Fn(Lane) -> bool + Send + Sync>;

/// A worker's place on standby; left when dropped.
pub(super) struct Place<'a> {
    standby: &'a Standby,
    number: u64,
    handed: oneshot::Receiver<Claim>,
}

impl Standby {
    pub(super) fn enter(&self, permit: Permit) -> Place<'_> {
        let (hand, handed) = oneshot::channel();
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.offers.lock().insert(number, Offer { permit, hand });
        Place { standby: self, number, handed }
    }

    /// A worker that stands by, with a permit taken for it.
    pub(super) fn take(&self, lane: Lane) -> Option<oneshot::Sender<Claim>> {
        let mut offers = self.offers.lock();
        let first = offers.first_entry()?;
        // All permits come from the same limits: what the first can't have, none can.
        (first.get().permit)(lane).then(|| first.remove().hand)
    }
}

impl Place<'_> {
    /// The job handed over; none if it was not accepted after all.
    pub(super) async fn handed(&mut self) -> Option<Claim> {
        (&mut self.handed).await.ok()
    }

    /// Gives the place up; false if a job is on its way here already.
    pub(super) fn leave(&self) -> bool {
        self.standby.offers.lock().remove(&self.number).is_some()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
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

    fn permit(granted: bool) -> Permit {
        Arc::new(move |_| granted)
    }

    #[test]
    fn a_worker_that_leaves_gives_up_its_own_place_only() {
        let standby = Standby::default();
        let first = standby.enter(permit(true));
        let _hand = standby.take(None).unwrap();
        let second = standby.enter(permit(true));
        assert!(!first.leave(), "a job is on its way to the first");
        drop(first);
        assert!(second.leave(), "the second still stood by");
    }

    #[test]
    fn nobody_is_taken_without_a_permit() {
        let standby = Standby::default();
        let place = standby.enter(permit(false));
        assert!(standby.take(None).is_none());
        assert!(place.leave());
    }
}
