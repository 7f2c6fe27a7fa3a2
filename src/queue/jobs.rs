//! What clients do with jobs: read, wait for, cancel, retry and list them.

use tokio::{sync::Notify, time::Instant};

use super::{
    core::{WAIT_POLL, add_caller_digest},
    error::QueueError,
    handles::Queue,
    rates::Quota,
};
use crate::{
    clock::Timestamp,
    job::{
        Job, JobId, JobPage, JobRecord, JobStatus, Listing, StatusCounts, TransitionError,
        caller::{self, Caller, Kind as CallerKind},
    },
    store::StoreError,
};

impl Queue {
    /// The job with its request and history.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn get(&self, id: JobId) -> Result<JobRecord, QueueError> {
        self.0.get(id).await
    }

    /// The job without its request and history.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn find(&self, id: JobId) -> Result<Job, QueueError> {
        self.0.find(id).await
    }

    /// The job as soon as it has reached an end, or as it is at `until` or when the service shuts down.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn wait(&self, id: JobId, until: Instant) -> Result<JobRecord, QueueError> {
        let interest = self.0.waiters.register(id);
        loop {
            let signalled = interest.signal().notified();
            let job = self.0.find(id).await?;
            if job.state.is_final() || self.0.closing.is_cancelled() || Instant::now() >= until {
                return self.0.get(id).await;
            }
            tokio::select! {
                biased;
                () = signalled => {}
                () = tokio::time::sleep_until(until.min(Instant::now() + WAIT_POLL)) => {}
                () = self.0.closing.cancelled() => {}
            }
        }
    }

    /// Cancels a queued or running job; a cancelled one stays so.
    ///
    /// # Errors
    /// [`QueueError::Conflict`] if the job ended otherwise, [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn cancel(&self, id: JobId) -> Result<JobRecord, QueueError> {
        match self.0.give_up(id).await {
            Ok(_) | Err(StoreError::Transition(TransitionError::Illegal { status: JobStatus::Cancelled, .. })) => {
                self.0.get(id).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a failed or cancelled job back into the queue, with a fresh count of attempts. It counts as a submission of the
    /// caller who wants it.
    ///
    /// # Errors
    /// As [`Queue::cancel`], and [`QueueError::Refused`].
    pub async fn requeue(&self, id: JobId, by: Caller) -> Result<JobRecord, QueueError> {
        self.0.put_back(id, by).await?;
        self.0.get(id).await
    }

    /// A page of jobs. A search that takes long ends before the page is full, and says how far it came.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn list(&self, mut listing: Listing) -> Result<JobPage, QueueError> {
        add_caller_digest(&mut listing.filter);
        Ok(self.0.store.list(listing, self.0.now()).await?)
    }

    /// Whether `name` submitted the job. Jobs of callers without a name are everybody's who has none. By a digest of the
    /// name that is in memory.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn is_of(&self, id: JobId, name: Option<&str>) -> Result<bool, QueueError> {
        let job = self.0.find(id).await?;
        Ok(match name {
            Some(name) => job.caller == caller::named(name),
            None => caller::kind(job.caller) != CallerKind::Named,
        })
    }

    /// How many jobs there are in each state.
    pub fn counts(&self) -> StatusCounts {
        self.0.counts()
    }

    /// What is left of a caller's submissions this minute, if they are limited.
    pub fn quota(&self, caller: Caller) -> Option<Quota> {
        self.0.bounds.rates.quota(caller, Instant::now())
    }

    /// Signalled when a job has ended that may owe a message to its callback URL.
    pub fn ended(&self) -> &Notify {
        &self.0.ended
    }

    /// The service time.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// The machine's clock, as clients compare it with theirs.
    pub fn wall(&self) -> Timestamp {
        self.0.clock.wall()
    }
}
