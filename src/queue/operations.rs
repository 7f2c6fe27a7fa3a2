//! What operators do to jobs and see of the queue, besides `bulk`, `reparse` and `webhooks`.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    core::store_admitted,
    error::QueueError,
    handles::Operations,
    pause::Pause,
    refused::{Refused, Shortage},
};
use crate::{
    clock::Timestamp,
    history::History,
    job::{Job, JobId, JobRecord, StatusCounts, caller},
    ledger::{Day, Sums},
    registry::Live,
    store::{Insertion, OrphanedKey},
};

impl Operations {
    /// The service time.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// How many jobs there are in each state.
    pub fn counts(&self) -> StatusCounts {
        self.0.counts()
    }

    /// Deletes a job that has ended, with its memo.
    ///
    /// # Errors
    /// [`QueueError::Conflict`] if the job has not ended, [`QueueError::NotFound`], [`QueueError::Unavailable`].
    pub async fn delete(&self, id: JobId) -> Result<(), QueueError> {
        loop {
            let job = self.0.find(id).await?;
            if !job.state.is_final() {
                let status = job.status(self.0.now());
                return Err(QueueError::Conflict(format!("the job is {status}; cancel it before you delete it")));
            }
            // The store leaves out a job that changes at this moment.
            if self.0.store.remove(vec![id], self.0.now()).await? == 1 {
                return Ok(());
            }
        }
    }

    /// Takes over jobs of another service, those whose id is not here yet, as they were there, and idempotency keys whose jobs
    /// were deleted there. An attempt that was under way there is of unknown outcome here, as after a crash. A webhook that is
    /// due there is sent from there, and not from here. Returns how many jobs were new.
    ///
    /// # Errors
    /// [`QueueError::Refused`] with none taken over, [`QueueError::Closing`], [`QueueError::Unavailable`].
    pub async fn import(&self, mut records: Vec<JobRecord>, mut keys: Vec<OrphanedKey>) -> Result<usize, QueueError> {
        if self.0.closing.is_cancelled() {
            return Err(QueueError::Closing);
        }
        let now = self.0.now();
        let last_end = now.plus(self.0.policy.idempotency_window);
        for JobRecord { job, delivery, .. } in &mut records {
            job.arrive(now);
            if let Some(key) = &mut job.idempotency {
                key.expires_at = key.expires_at.min(last_end);
            }
            // Not dropped: without it, the job would send no message if it were retried.
            if let Some(due) = delivery.take_if(|delivery| delivery.next_at().is_some()) {
                *delivery = Some(due.skipped());
            }
        }
        keys.iter_mut().for_each(|(key, ..)| key.expires_at = key.expires_at.min(last_end));
        let mut new: Vec<&Job> = Vec::new();
        for JobRecord { job, .. } in &records {
            new.extend(self.0.store.find(job.id).await?.is_none().then_some(job));
        }
        // An operator brings them, whosever they are.
        let arrivals = self.0.admit((caller::operator(), None), &new).await?;
        let store = Arc::clone(&self.0.store);
        if !keys.is_empty() {
            self.0.store.add_keys(keys).await?;
        }
        let insertions = store_admitted(arrivals, async move { store.import(records, None).await }).await?;
        self.0.due.notify_one();
        Ok(insertions.iter().filter(|insertion| **insertion == Insertion::Accepted).count())
    }

    /// How the service fared over time.
    pub fn history(&self) -> &Arc<History> {
        &self.0.history
    }

    /// How many attempts can be under way at once.
    pub fn workers(&self) -> usize {
        self.0.workers()
    }

    /// How many attempts are under way on all nodes.
    pub fn running_attempts(&self) -> usize {
        self.0.running_attempts()
    }

    /// How many attempts are under way in this process.
    pub fn own_attempts(&self) -> usize {
        self.0.running.own()
    }

    /// The used share of the places in the queue: of all, or of those for jobs for later, whichever is larger.
    pub fn used(&self) -> f64 {
        let StatusCounts { queued, scheduled, running, .. } = self.0.counts();
        self.0.bounds.used(queued + scheduled + running, scheduled)
    }

    /// What was spent today, durably.
    pub fn spent_today(&self) -> Sums {
        self.0.spending.on(Day::of(self.0.now()))
    }

    /// How many jobs were accepted since the start.
    pub fn submitted(&self) -> u64 {
        self.0.metrics.jobs_submitted.get()
    }

    /// How long the oldest job has waited that could run.
    pub fn oldest_queued_age(&self) -> Duration {
        self.0.board.oldest_queued().map_or(Duration::ZERO, |due_at| self.0.now().since(due_at))
    }

    /// How many clients wait for a job's end or follow one.
    pub fn waiters(&self) -> usize {
        self.0.waiters.len() + self.0.followers.len()
    }

    /// How long an attempt lasts: a running mean.
    pub fn service_time(&self) -> Duration {
        self.0.service_time.mean()
    }

    /// Why the store can't be used at the moment, if so.
    pub fn trouble(&self) -> Option<String> {
        let gone = self.0.is_folder_gone().then(|| Refused::FolderGone.to_string());
        self.0.store.trouble().or(gone)
    }

    /// Cancelled when the store can't recover by itself: the process has to be started again.
    pub fn store_lost(&self) -> CancellationToken {
        self.0.store.lost()
    }

    /// What the disk is short of, if it is: then no job is accepted, and all else goes on.
    pub fn shortage(&self) -> Option<Shortage> {
        self.0.bounds.disk_space.shortage()
    }

    /// Has no further job claimed until [`Operations::resume`], also after a restart. A queue that is paused stays as it is.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`]; then the queue goes on.
    pub async fn pause(&self, by: &str) -> Result<Pause, QueueError> {
        let pause = Pause { by: by.to_owned(), at: self.0.now() };
        Ok(self.0.paused.set(Some(pause.clone())).await?.unwrap_or(pause))
    }

    /// Has jobs claimed again.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`]; then the queue stays paused.
    pub async fn resume(&self) -> Result<(), QueueError> {
        self.0.paused.set(None).await?;
        Ok(())
    }

    /// The settings of the queue that any node may change.
    pub fn live(&self) -> Vec<Arc<dyn Live>> {
        vec![Arc::clone(&self.0.paused) as _, Arc::clone(&self.0.history) as _]
    }

    /// Who paused the queue, if it is.
    pub fn paused(&self) -> Option<Pause> {
        self.0.paused.get()
    }
}
