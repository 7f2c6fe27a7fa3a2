//! What the handles of the queue share: reading a job, and the one place through which every transition goes.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tracing::info;

use super::{board::Arrivals, error::QueueError, handles::Inner, refused::Refused};
use crate::{
    clock::Timestamp,
    digest::sha256,
    job::{
        AtRisk, Job, JobEvent, JobFilter, JobId, JobRecord, JobStatus, Owner, StatusCounts, TransitionError,
        caller::{self, Caller},
    },
    metrics::kind,
    process,
    store::StoreError,
};

/// A waiter looks at its job at least so often, should it have missed a signal.
pub(super) const WAIT_POLL: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) fn is_paused(&self) -> bool {
        self.paused.is_on()
    }

    /// This node.
    pub(super) fn owner(&self) -> Owner {
        *self.own.borrow()
    }

    /// The service time.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The job with its request and history.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub(super) async fn get(&self, id: JobId) -> Result<JobRecord, QueueError> {
        self.store.get(id).await?.ok_or(QueueError::NotFound(id))
    }

    /// The job without its request and history.
    ///
    /// # Errors
    /// As [`super::handles::Queue::get`].
    pub(super) async fn find(&self, id: JobId) -> Result<Job, QueueError> {
        match self.board.get(id) {
            Some(job) => Ok((*job).clone()),
            None => self.store.find(id).await?.ok_or(QueueError::NotFound(id)),
        }
    }

    /// How many jobs there are in each state.
    pub(super) fn counts(&self) -> StatusCounts {
        self.board.counts()
    }

    /// How many attempts can be under way at once.
    pub(super) fn workers(&self) -> usize {
        (self.policy.allowance)(None).calls_at_once.min(self.policy.workers)
    }

    /// How many attempts are under way on all nodes.
    pub(super) fn running_attempts(&self) -> usize {
        self.running.len()
    }

    /// True once the service is shutting down.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Whether the store's file is no longer where the next start would look for it.
    pub(super) fn is_folder_gone(&self) -> bool {
        self.bounds.is_folder_gone.load(Ordering::Relaxed)
    }

    /// Cancels a job, with what its attempt may cost if one is under way. The store refuses a cancel that does not know of
    /// the attempt, because the job was claimed in this moment: then the next try knows.
    pub(super) async fn give_up(&self, id: JobId) -> Result<Job, StoreError> {
        loop {
            let at_risk = self.at_risk(id).await;
            match self.transition(id, JobEvent::Cancel { at_risk }).await {
                Err(StoreError::Transition(TransitionError::Illegal { status: JobStatus::Running, .. })) => {
                    tokio::task::yield_now().await;
                }
                result => return result,
            }
        }
    }

    /// What the attempt of a running job may cost. If its request can't be read, that of the usual one.
    pub(super) async fn at_risk(&self, id: JobId) -> Option<AtRisk> {
        self.find(id).await.ok().filter(Job::is_running)?;
        let request = match self.running.request(id) {
            Some(request) => request,
            None => self.store.get(id).await.ok().flatten().map_or_else(Arc::default, |record| record.request),
        };
        Some((self.policy.estimate_risk)(&request))
    }

    /// As [`super::handles::Queue::requeue`], without a look at the job afterwards.
    pub(super) async fn put_back(self: &Arc<Self>, id: JobId, by: Caller) -> Result<(), QueueError> {
        let (now, job) = (self.now(), self.find(id).await?);
        let event = JobEvent::Requeue { run_at: now };
        let after = job.apply(&event, now).map_err(StoreError::from)?;
        let arrivals = self.admit((by, job.caller), &[&after]).await?;
        let queue = Arc::clone(self);
        store_admitted(arrivals, async move { queue.transition(id, event).await.map(drop) }).await
    }

    /// Asks the bounds whether jobs of `owner` may become pending, as submissions of `by`.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) async fn admit(
        self: &Arc<Self>,
        (by, owner): (Caller, Caller),
        jobs: &[&Job],
    ) -> Result<Arrivals, Refused> {
        let rates = &self.bounds.rates;
        let is_counted = rates.take_shared(by, jobs.len()).await?;
        let admitted = self.board.admit(&self.bounds, (by, owner), jobs, is_counted);
        if is_counted && admitted.is_err() {
            rates.put_back(by, jobs.len()).await;
        }
        admitted
    }

    /// Has the clients of a job take the place that its state calls for.
    pub(super) fn place(&self, job: &Job, now: Timestamp) {
        self.order.update([job], (now, self.clock.lead()), |job| self.board.is_blocked(job.id));
    }

    /// A transition of a job as it was seen a moment ago; none if it has changed or gone since.
    pub(super) async fn try_transition(&self, id: JobId, event: JobEvent) -> Result<Option<Job>, QueueError> {
        match self.transition(id, event).await {
            Ok(after) => Ok(Some(after)),
            Err(StoreError::Transition(_) | StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every transition of the queue goes through here, so that each is counted once.
    pub(super) async fn transition(&self, id: JobId, event: JobEvent) -> Result<Job, StoreError> {
        let now = self.now();
        let is_running = || self.board.get(id).is_some_and(|job| job.is_running());
        let outcome = match &event {
            JobEvent::Succeed { .. } => Some("succeeded"),
            JobEvent::Retry { .. } | JobEvent::Fail { .. } | JobEvent::FindUnreadable { .. } => Some("failed"),
            JobEvent::Cancel { .. } => is_running().then_some("cancelled"),
            JobEvent::Release { .. } => Some("released"),
            JobEvent::Expire { .. } => Some("outcome_unknown"),
            JobEvent::Reparse { .. } => Some("reparsed"),
            JobEvent::Share { .. } => Some("shared"),
            JobEvent::Claim { .. } | JobEvent::MissDeadline | JobEvent::Requeue { .. } => None,
        };
        let changed = match event {
            JobEvent::Succeed { attempt, report } => {
                let followers = self.board.followers(id);
                self.store.succeed(id, attempt, report, followers, now).await
            }
            event => self.store.transition(id, event, now).await.map(|job| vec![job]),
        };
        let mut changed = changed?;
        if let Some(outcome) = outcome {
            self.metrics.attempts.get_or_create(&kind(outcome)).inc();
        }
        for job in changed.iter().filter(|job| job.state.is_final()) {
            self.record_end(job, now);
        }
        self.metrics.answers_shared.inc_by(changed.len().saturating_sub(1) as u64);
        Ok(changed.swap_remove(0))
    }

    /// Counts and logs the end of a job.
    pub(super) fn record_end(&self, job: &Job, now: Timestamp) {
        let status = job.status(now);
        let took = now.since(job.due_at);
        self.metrics.jobs_finished.get_or_create(&kind(status.into())).inc();
        if status != JobStatus::Cancelled {
            self.metrics.time_to_finish_seconds.observe(took.as_secs_f64());
        }
        if status == JobStatus::Succeeded {
            self.history.succeeded(took);
        }
        info!(job.id = %job.id, job.status = %status, attempt = job.attempt, duration_ms = took.as_secs_f64() * 1e3,
            "job finished");
    }
}

/// Has the store take jobs that were admitted. The bounds count them until the store has answered, even if the client hangs
/// up in this moment: then a task of its own waits for the answer.
pub(super) async fn store_admitted<T: Send + 'static>(
    arrivals: Arrivals,
    taken: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, QueueError> {
    let mut call = Outliving(Some(Box::pin(async move {
        let taken = taken.await;
        drop(arrivals);
        taken
    })));
    let result = poll_fn(|context| match &mut call.0 {
        Some(call) => call.as_mut().poll(context),
        None => Poll::Pending,
    });
    let result = result.await;
    call.0 = None;
    Ok(result?)
}

/// A call that goes on if it is dropped before its end.
struct Outliving<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> Drop for Outliving<T> {
    fn drop(&mut self) {
        if let (Some(call), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(process::task(async move { drop(call.await) }));
        }
    }
}

/// The first half of a SHA-256: no two texts are known to share even that.
pub(super) fn digest(bytes: &[u8]) -> [u8; 16] {
    let whole = sha256(&[bytes]);
    std::array::from_fn(|place| whole[place])
}

/// Adds the digest by which jobs of the caller are found without reading them.
pub(super) fn add_caller_digest(filter: &mut JobFilter) {
    filter.caller_digest = filter.caller.as_deref().and_then(caller::named);
}
